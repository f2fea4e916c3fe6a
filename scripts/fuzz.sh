#!/usr/bin/env bash
# Fuzzes the parsers of untrusted files, each for some seconds (default 20), from the fixtures.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-20}

if ! cargo +nightly --version >/dev/null 2>&1; then
    echo "fuzzing: skipped, because it needs a nightly toolchain"
    exit 0
fi
if ! command -v cargo-fuzz >/dev/null; then
    cargo install --quiet --locked cargo-fuzz
fi

corpus=target/fuzz-corpus
mkdir -p "$corpus"/{gguf,safetensors_header,config,routing_trace,prefix_entry}
# Headers alone: the data behind them only slows the fuzzer down.
for file in tests/fixtures/gguf/*.gguf; do
    head -c 40000 "$file" >"$corpus/gguf/$(basename "$file")"
done
printf '\377\377\377\377\0\0\0\0%s' \
    '{"__metadata__":{"format":"mlx"},"w":{"dtype":"BF16","shape":[2,4],"data_offsets":[0,16]}}' \
    >"$corpus/safetensors_header/seed"
cp tests/fixtures/configs/*.json "$corpus/config/"

printf 'flash-moe routing 1\nslot_bytes 4096\nexperts 4 0 4\n0 1 3*20\n2 0\n' \
    >"$corpus/routing_trace/seed"
# A whole entry, whose header and checksum the target adds, and one that has neither.
printf '\003%060d' 0 >"$corpus/prefix_entry/whole"
printf '\000FM-PREFX\001' >"$corpus/prefix_entry/header"

cargo +nightly fuzz build --sanitizer none 2>&1 | tail -n 40
fuzz() {
    local target=$1 log=$corpus/$1.log units
    if ! cargo +nightly fuzz run --sanitizer none "$target" "$corpus/$target" -- \
        -max_total_time="$seconds" -max_len=65536 -rss_limit_mb=2048 -timeout=10 -verbosity=0 \
        -print_final_stats=1 >"$log" 2>&1; then
        tail -n 60 "$log" >&2
        echo "$target: a crash was found (see fuzz/artifacts/$target), or it did not run" >&2
        return 1
    fi
    units=$(grep "^stat::number_of_executed_units" "$log") || return
    echo "== $target, $seconds s: $units"
}
export -f fuzz
export corpus seconds
printf '%s\n' gguf safetensors_header config routing_trace prefix_entry | xargs -P "$(nproc)" -I{} bash -c 'fuzz {}'
