# syntax=docker/dockerfile:1

# The builder runs on the machine's own architecture and compiles for TARGETARCH: emulating an
# arm64 compiler on amd64 (or the reverse) takes ten times as long as cross-compiling.
FROM --platform=$BUILDPLATFORM rust:1.95-slim-bookworm AS build

# Set by BuildKit. No defaults: a default would win over BuildKit's own value.
ARG BUILDARCH
ARG TARGETARCH

SHELL ["/bin/bash", "-euo", "pipefail", "-c"]

# ring holds C and assembly, so it needs a C compiler for the target: musl-gcc for our own
# architecture, Debian's cross gcc for the other one (Debian ships musl-gcc for the native one only;
# ring uses no libc beyond what the Rust musl target links itself).
# Packages are not pinned: Debian removes superseded versions, and a pin would break the build.
# hadolint ignore=DL3008
RUN <<SETUP
case "$TARGETARCH" in
  amd64) rust=x86_64-unknown-linux-musl gnu=x86_64-linux-gnu cross='gcc-x86-64-linux-gnu libc6-dev-amd64-cross' ;;
  arm64) rust=aarch64-unknown-linux-musl gnu=aarch64-linux-gnu cross='gcc-aarch64-linux-gnu libc6-dev-arm64-cross' ;;
  *) echo "TARGETARCH is '$TARGETARCH': headwater is built for amd64 and arm64" >&2; exit 1 ;;
esac
if [[ $TARGETARCH == "$BUILDARCH" ]]; then
  packages=musl-tools cc=musl-gcc
else
  packages=$cross cc=$gnu-gcc
fi
apt-get update
# shellcheck disable=SC2086 # two package names on purpose
apt-get install -y --no-install-recommends $packages
rm -rf /var/lib/apt/lists/*
rustup target add "$rust"
# Cargo and the cc crate read these names from the environment; the build step below sources them.
# A file, since a Dockerfile cannot set ENV from a computed value.
variable=$(echo "$rust" | tr '-' '_')
{
  echo "export CARGO_BUILD_TARGET=$rust"
  echo "export CC_$variable=$cc"
  echo "export CARGO_TARGET_$(echo "$variable" | tr '[:lower:]' '[:upper:]')_LINKER=$cc"
} > /target.env
SETUP

WORKDIR /src
COPY . .

# Downloads and compiled dependencies live in cache mounts, so a change in src/ compiles this crate
# alone. The target directory has one cache per architecture, locked: two builds must not share it.
# `touch`: Cargo judges freshness by modification time, and a source archive carries old times. A
# cached binary of a newer build would pass for fresh.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target,id=headwater-target-$TARGETARCH,sharing=locked \
    . /target.env \
    && find src -type f -exec touch {} + \
    && cargo build --profile dist --locked --bin headwater \
    && cp "target/$CARGO_BUILD_TARGET/dist/headwater" /headwater

# Certificates for wss:// nodes, a non-root user, and nothing to run but us: no shell, no libc.
FROM gcr.io/distroless/static-debian12:nonroot

ARG VERSION=unreleased
ARG REVISION=unknown
LABEL org.opencontainers.image.title="headwater" \
      org.opencontainers.image.description="Ethereum JSON-RPC subscription proxy: one subscription at the node, thousands of clients" \
      org.opencontainers.image.source="https://github.com/headwater-rpc/headwater" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"

COPY --from=build /headwater /headwater

# Loopback, the program's default, would be unreachable from outside the container.
ENV HEADWATER_LISTEN=0.0.0.0:9546 \
    HEADWATER_ADMIN=0.0.0.0:9547
EXPOSE 9546 9547

# The base image's own `nonroot`, by number: Kubernetes' runAsNonRoot cannot judge a name.
USER 65532:65532
# headwater drains on SIGTERM: it stops accepting and closes clients with a code and a reason.
STOPSIGNAL SIGTERM
# The binary asks itself: the image has no curl and no shell to run it.
HEALTHCHECK --interval=10s --timeout=3s --start-period=15s --retries=3 CMD ["/headwater", "health"]
ENTRYPOINT ["/headwater"]
