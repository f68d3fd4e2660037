#!/bin/sh
# Builds the daemon as it is in the image, and prints where it is: static, the same bytes in whatever folder it is built, and
# with the list of its dependencies in it (cargo auditable), which scanners read.
#
#   image/build.sh [amd64|arm64]     by default this machine's architecture; the other one with Debian's cross compiler
set -eu
cd "$(dirname "$0")/.."

case ${1:-$(uname -m)} in
    amd64 | x86_64) target=x86_64-unknown-linux-gnu ;;
    arm64 | aarch64) target=aarch64-unknown-linux-gnu ;;
    *) echo "$0: the architecture is amd64 or arm64" >&2 && exit 64 ;;
esac
folder=${CARGO_TARGET_DIR:-$PWD/target}

# As Debian calls its own compiler and those for others.
export CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_LINKER=x86_64-linux-gnu-gcc
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
# For the daemon alone: with --target, what runs while it is built is built without.
export RUSTFLAGS="-C target-feature=+crt-static --remap-path-prefix=$PWD=/kube2irsa --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo"
# By the package's name, and so with the features that it asks for: those of the sandbox are not the image's.
cargo auditable build --locked --release --package kube2irsa --bin kube2irsa --target "$target" --target-dir "$folder" >&2
echo "$folder/$target/release/kube2irsa"
