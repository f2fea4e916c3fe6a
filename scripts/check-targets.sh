#!/usr/bin/env bash
# Type-checks the program for the systems that CI does not run on.
#
# rustup can only be asked for what it has; Debian's rustc-web packages come with the standard library's
# source, from which cargo checks any target. Nothing is linked, so no SDK is needed.
set -euo pipefail
cd "$(dirname "$0")/.."

targets=("$@")
if [ ${#targets[@]} -eq 0 ]; then
    # What is peculiar to 64-bit Arm is in the first, what is to Linux is built and tested anyway.
    targets=(aarch64-apple-darwin x86_64-pc-windows-msvc)
fi

if [ ! -x /usr/bin/cargo ] || [ ! -d /usr/share/rustc-web ] && ! dpkg -s rust-web-src >/dev/null 2>&1; then
    apt-get update -qq
    apt-get install -y -qq rustc-web cargo-web rust-web-src >/dev/null
fi

# The GPU backend is Linux's on every processor, and compiles for a minute: it is checked for each other system once.
linux=()
others=()
for target in "${targets[@]}"; do
    case $target in
    *-linux-*) linux+=(--target "$target") ;;
    *) others+=(--target "$target") ;;
    esac
done

# All that are given in one run, so that no core waits for the last crate of each. The standard library is compiled, not
# checked: with no optimisation in half the time.
export CARGO_PROFILE_DEV_OPT_LEVEL=0 CARGO_PROFILE_DEV_DEBUG=false
check() {
    echo "== $*"
    RUSTC=/usr/bin/rustc RUSTC_BOOTSTRAP=1 CARGO_TARGET_DIR=target/cross \
        /usr/bin/cargo check --quiet --locked --package flash-moe "$@" -Zbuild-std=std,panic_abort
}
if [ ${#others[@]} -gt 0 ]; then
    check "${others[@]}"
fi
if [ ${#linux[@]} -gt 0 ]; then
    check --no-default-features "${linux[@]}"
fi
