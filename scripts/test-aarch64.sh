#!/usr/bin/env bash
# Runs the tests of the kernels on an emulated 64-bit Arm machine: the NEON versions are held to the
# reference like all others.
set -euo pipefail
cd "$(dirname "$0")/.."

packages=(rustc-web cargo-web rust-web-src gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user)
if ! dpkg -s "${packages[@]}" >/dev/null 2>&1; then
    apt-get update -qq
    apt-get install -y -qq "${packages[@]}" >/dev/null
fi

export RUSTC=/usr/bin/rustc RUSTC_BOOTSTRAP=1 CARGO_TARGET_DIR=target/cross
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="bash $PWD/scripts/emulate-aarch64.sh"
# All versions of the kernels must be among those that are tested.
export FLASH_MOE_EXPECTED_ISAS=neon-i8mm,neon-dotprod,neon,scalar
export FLASH_MOE_EMULATED=1
/usr/bin/cargo test --locked --package flash-moe-compute --lib --test it \
    --target aarch64-unknown-linux-gnu -Zbuild-std=std,panic_abort,test
