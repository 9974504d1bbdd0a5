# `make` alone lists what there is.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo up test build lint fmt bench bench-start bench-micro bench-counts bench-compare faults faults-planted broker-faults soak compose-up compose-down compose-test clean
.PHONY: bench-auth bench-gateway bench-ratelimit bench-broker bench-job bench-audit bench-raw

# Options of the thing run: make demo ARGS=--json
ARGS ?=

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

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

bench: ## Measure everything against what this machine can do, some ten minutes (ARGS='--runs 5 --markdown docs/benchmarks.md')
	$(call bench,all)

bench-auth: ## Measure refreshes, sign-ins, verifications, exchanges
	$(call bench,auth)

bench-gateway: ## Measure requests through the pipeline, and their processor time
	$(call bench,gateway)

bench-ratelimit: ## Measure decisions of the rate limiter
	$(call bench,ratelimit)

bench-broker: ## Measure brokered tokens, cached and refreshed
	$(call bench,broker)

bench-job: ## Measure jobs end to end, event streams and their memory
	$(call bench,job)

bench-audit: ## Measure appends to the audit log, and proving it
	$(call bench,audit)

bench-raw: ## Measure what this machine can do
	$(call bench,raw)

# Built as everything else is, with no package named; what was measured is kept, and compared with next time.
define bench
cargo build --locked --release --bin gatehouse --bin gatehouse-bench
@target/release/gatehouse-bench $(1) --save target/bench/last.json $(ARGS)
endef

bench-compare: ## Compare the last run with the one before it (ARGS='OLD.json NEW.json' for others)
	@cargo run --locked --quiet --release --bin gatehouse-bench -- compare $(or $(ARGS),target/bench/before.json)

bench-counts: ## Count statements, commits, syncs and Redis calls of each operation (ARGS='--markdown docs/benchmarks.md')
	cargo build --locked --release --bin gatehouse --bin gatehouse-bench
	@target/release/gatehouse-bench counts $(ARGS)

bench-micro: ## The limiter alone, and auth within one process
	cargo run --locked --release --example rate
	cargo test --locked --release --workspace --test auth figures -- --ignored --nocapture

bench-start: ## Measure the start, idle memory and size of the release build (ARGS='--build release --markdown docs/benchmarks.md': builds too)
	cargo build --locked --release --bin gatehouse --bin gatehouse-demo
	@cargo run --locked --quiet --release --bin gatehouse-demo -- bench-start $(ARGS)

faults: ## Faults in a cluster of processes: one random seed, or GATEHOUSE_SEED=n again, or GATEHOUSE_FAULT_SEEDS=n
	cargo test --locked --workspace --test faults nothing_is_lost -- --nocapture

faults-planted: ## Show that the fault harness catches three planted bugs (PLANTED_BUG=refresh|worker|audit for one)
	cargo build --locked --bin gatehouse --features gatehouse/planted-bugs
	cp target/debug/gatehouse target/debug/gatehouse-planted
	GATEHOUSE_FAULT_PROGRAM="$(CURDIR)/target/debug/gatehouse-planted" \
	  cargo test --locked --workspace --test faults every_planted_bug -- --ignored --nocapture

broker-faults: ## kill -9 of token brokers on OpenBao: one random seed, or GATEHOUSE_SEED=n again, GATEHOUSE_BROKER_KILLS, GATEHOUSE_BROKER_SECONDS
	GATEHOUSE_ALLOW_SKIPS= cargo test --locked --workspace --test whole two_token_brokers -- --nocapture

soak: ## kill -9 of one process 100 times (GATEHOUSE_SOAK_ROUNDS), then faults in a cluster for an hour (GATEHOUSE_SOAK_SECONDS), then of token brokers (GATEHOUSE_SOAK_BROKER_SECONDS)
	GATEHOUSE_SOAK_ROUNDS=$${GATEHOUSE_SOAK_ROUNDS:-100} cargo test --locked --workspace --test crash -- --nocapture
	GATEHOUSE_FAULT_SECONDS=$${GATEHOUSE_SOAK_SECONDS:-3600} \
	  cargo test --locked --workspace --test faults nothing_is_lost -- --nocapture
	GATEHOUSE_ALLOW_SKIPS= GATEHOUSE_BROKER_KILLS=20 GATEHOUSE_BROKER_SECONDS=$${GATEHOUSE_SOAK_BROKER_SECONDS:-900} \
	  cargo test --locked --workspace --test whole two_token_brokers -- --nocapture

# docker-compose where it is installed, else the engine's plugin.
COMPOSE ?= $(shell command -v docker-compose >/dev/null && echo docker-compose || echo docker compose)

compose-up: ## Start everything in containers on this host (docs/deployment.md)
	$(COMPOSE) up -d $(ARGS)

compose-down: ## Stop the containers; data and secrets stay (ARGS=-v removes them)
	$(COMPOSE) down $(ARGS)

compose-test: ## Start the containers from nothing, go on the tour, check what must hold, twice
	@deploy/compose-test

clean: ## Remove what was built
	cargo clean
