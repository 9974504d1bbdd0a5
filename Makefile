# `make` alone lists what there is.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo up test build lint fmt bench-start faults faults-planted soak clean

# Options of the thing run: make demo ARGS=--json
ARGS ?=

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# All cargo calls here share one profile and name no package, so that features are resolved over the whole workspace each
# time: what one target built, the next one uses.

demo: ## Build, start everything, do the main job while you watch (ARGS=--json for plain JSON)
	@cargo build --locked --bin gatehouse --bin gatehouse-demo
	@cargo run --locked --quiet --bin gatehouse-demo -- $(ARGS)

up: ## Start all services in one process and stay; prints URLs and the first admin's credentials
	@cargo run --locked --bin gatehouse -- up $(ARGS)

test: ## Install what the tests need, run all of them; the last line is `N passed, N failed`
	@.ci/test $(ARGS)

build: ## Build every program
	cargo build --locked --workspace

lint: ## Check formatting, lints, dependencies, contracts and secrets
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	@.ci/check-dependencies
	@.ci/check-proto
	@.ci/secret-scan

fmt: ## Format the code
	cargo fmt --all

bench-start: ## Measure the start, idle memory and size of the release build
	cargo build --locked --release --bin gatehouse --bin gatehouse-demo
	@cargo run --locked --quiet --release --bin gatehouse-demo -- bench-start $(ARGS)

faults: ## Faults in a cluster of processes: one random seed, or GATEHOUSE_SEED=n again, or GATEHOUSE_FAULT_SEEDS=n
	cargo test --locked --workspace --test faults nothing_is_lost -- --nocapture

faults-planted: ## Show that the fault harness catches three planted bugs (PLANTED_BUG=refresh|worker|audit for one)
	cargo build --locked --bin gatehouse --features gatehouse/planted-bugs
	cp target/debug/gatehouse target/debug/gatehouse-planted
	GATEHOUSE_FAULT_PROGRAM=$(CURDIR)/target/debug/gatehouse-planted \
	  cargo test --locked --workspace --test faults every_planted_bug -- --ignored --nocapture

soak: ## kill -9 of one process 100 times (GATEHOUSE_SOAK_ROUNDS), then faults in a cluster for an hour (GATEHOUSE_SOAK_SECONDS)
	GATEHOUSE_SOAK_ROUNDS=$${GATEHOUSE_SOAK_ROUNDS:-100} cargo test --locked --workspace --test crash -- --nocapture
	GATEHOUSE_FAULT_SECONDS=$${GATEHOUSE_SOAK_SECONDS:-3600} \
	  cargo test --locked --workspace --test faults nothing_is_lost -- --nocapture

clean: ## Remove what was built
	cargo clean
