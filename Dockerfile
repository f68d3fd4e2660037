# The daemon, the commands by which it writes rules, and nothing else (docs/image.md).
ARG RUST=rust:1.95.0-slim-bookworm
ARG DEBIAN=debian:bookworm-slim

# On the architecture of the machine that builds: a compiler that is emulated takes hours.
FROM --platform=$BUILDPLATFORM $RUST AS daemon
ARG BUILDARCH
ARG TARGETARCH
RUN if [ "$TARGETARCH" != "$BUILDARCH" ]; then \
        apt-get -qq update && apt-get -qq install -y --no-install-recommends "crossbuild-essential-$TARGETARCH" && \
        case "$TARGETARCH" in amd64) rustup target add x86_64-unknown-linux-gnu ;; arm64) rustup target add aarch64-unknown-linux-gnu ;; esac; \
    fi
RUN cargo install --quiet --locked --version 0.7.7 cargo-auditable
WORKDIR /kube2irsa
COPY . .
RUN cp "$(image/build.sh "$TARGETARCH")" /usr/local/bin/kube2irsa

FROM $DEBIAN AS root
ARG SOURCE_DATE_EPOCH
COPY --from=daemon /usr/local/bin/kube2irsa /kube2irsa/LICENSE /kube2irsa/image/assemble.sh /from/
RUN /from/assemble.sh /from/kube2irsa /from/LICENSE /image

FROM scratch
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="kube2irsa" \
      org.opencontainers.image.description="Gives every pod the IAM role of its own ServiceAccount through the EC2 metadata service" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.source="https://github.com/kube2irsa/kube2irsa" \
      org.opencontainers.image.documentation="https://github.com/kube2irsa/kube2irsa/blob/main/docs/image.md" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=root /image/ /
ENV PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
# Kubernetes gives added capabilities to no other user (docs/rights.md).
USER 0:0
ENTRYPOINT ["/usr/local/bin/kube2irsa"]
CMD ["run"]
