# Gatehouse as one image: every service, migrations and the admin commands are subcommands of the one program.
#
#   docker build -t gatehouse:local .
#
# It reads as the classic builder does (docker-compose 1.29 builds with it): no cache mounts, no heredocs.
# RUST_IMAGE and BASE_IMAGE name other bases, or these by digest (rust@sha256:…); PROFILE another cargo profile (dev builds quicker and runs slower).

ARG RUST_IMAGE=rust:1.95-slim-trixie
ARG BASE_IMAGE=debian:trixie-slim

# What settles the dependencies, and nothing else: while this is unchanged, the next stage's long step is cached.
FROM ${RUST_IMAGE} AS manifests
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
COPY crates crates
RUN find crates -type f ! -name Cargo.toml -delete \
    && for crate in crates/*; do \
        mkdir -p "$crate/src" && echo 'fn main() {}' >"$crate/src/main.rs" && touch "$crate/src/lib.rs"; \
    done \
    && echo 'fn main() {}' >crates/proto/build.rs

FROM ${RUST_IMAGE} AS build
ARG PROFILE=release
ENV CARGO_INCREMENTAL=0 CARGO_TERM_COLOR=never
WORKDIR /src
COPY --from=manifests /src .
RUN cargo build --locked --profile "$PROFILE" --bin gatehouse --bin gatehouse-demo
COPY proto proto
COPY migrations migrations
COPY crates crates
# The placeholders are younger than the sources, which keep their own times.
RUN find crates proto migrations -type f -exec touch {} + \
    && cargo build --locked --profile "$PROFILE" --bin gatehouse --bin gatehouse-demo \
    && mkdir /out \
    && folder=target/$(if [ "$PROFILE" = dev ]; then echo debug; else echo "$PROFILE"; fi) \
    && cp "$folder/gatehouse" "$folder/gatehouse-demo" /out/ \
    && rm -rf target

# The file system of the image: the C library that the program was linked with, certificate authorities, a user, and
# the folders where volumes are mounted. No shell, no package manager.
FROM ${BASE_IMAGE} AS files
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates libgcc-s1 \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /out /out
RUN mkdir -p /files/etc/ssl/certs /files/tmp /files/usr/bin /volumes/data \
    && for name in ca https postgres redis migrate auth token-broker job audit gateway optimizer; do \
        mkdir -p "/volumes/secrets/$name"; \
    done \
    && ldd /out/gatehouse /out/gatehouse-demo | grep -o '/[^ ]*\.so[^ ]*' | sort -u \
        | while read -r library; do cp --parents -L "$library" /files; done \
    && cp -L /etc/ssl/certs/ca-certificates.crt /files/etc/ssl/certs/ \
    && echo 'hosts: files dns' >/files/etc/nsswitch.conf \
    && echo 'gatehouse:x:65532:65532::/:/none' >/files/etc/passwd \
    && echo 'gatehouse:x:65532:' >/files/etc/group \
    && chmod 1777 /files/tmp \
    && chmod -R 0750 /volumes/secrets \
    && chmod 0700 /volumes/data

FROM scratch AS runtime
COPY --from=files /files /
# Volumes take over who owns the folder that they are mounted on.
COPY --from=files --chown=65532:65532 /volumes/secrets /secrets
COPY --from=files --chown=65532:65532 /volumes/data /data
COPY --from=build /out/gatehouse /usr/bin/gatehouse
ENV PATH=/usr/bin
USER 65532:65532
ENTRYPOINT ["gatehouse"]
HEALTHCHECK --interval=5s --timeout=10s --start-period=60s --retries=6 CMD ["gatehouse", "healthcheck"]

# The tour through the product, for `make compose-test`.
FROM runtime AS tour
COPY --from=build /out/gatehouse-demo /usr/bin/gatehouse-demo
ENTRYPOINT ["gatehouse-demo"]
HEALTHCHECK NONE

# What is built where no target is named.
FROM runtime
