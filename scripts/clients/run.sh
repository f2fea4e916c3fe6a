#!/usr/bin/env bash
# Starts a server of the demo model and runs the official clients against it.
#   scripts/clients/run.sh [PROGRAM] [--load SECONDS]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
program=${1:-$here/../../target/debug/flash-moe}
venv=${FLASH_MOE_CLIENTS_VENV:-${TMPDIR:-/tmp}/flash-moe-clients}

if [ ! -x "$venv/bin/python" ]; then
    python3 -m venv "$venv"
fi
"$venv/bin/pip" install --quiet --disable-pip-version-check --requirement "$here/requirements.txt"

log=$(mktemp)
"$program" serve --port 0 --api-key clients-key --parallel 4 --quiet 2>"$log" &
server=$!
trap 'kill $server 2>/dev/null || true; rm -f "$log"' EXIT
for _ in $(seq 300); do
    address=$(sed -n 's|^serving .* at \(http://.*\)$|\1|p' "$log")
    [ -n "$address" ] && break
    kill -0 $server || { cat "$log"; exit 1; }
    sleep 0.1
done

"$venv/bin/python" "$here/check.py" "$address" clients-key
if [ "${2:-}" = --load ]; then
    "$venv/bin/python" "$here/load.py" "$address" clients-key "${3:-60}" $server
fi
kill -TERM $server
wait $server
echo "the server ended well"
