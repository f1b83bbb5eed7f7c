#!/usr/bin/env bash
# Asks a real server all that its own description allows, and much that it does not: no answer may
# be a failure of the server (5xx), and none may be undescribed. Takes about two minutes.
#   tests/schemathesis.sh [SECONDS]
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-60}
work=$(mktemp -d)
cleanup() {
  for pid in "${node:-}" "${server:-}"; do [ -z "$pid" ] || kill "$pid" 2>/dev/null || true; done
  wait 2>/dev/null || true
  rm -rf "$work"
}
trap cleanup EXIT

cargo build --locked --bin utterd
program=${CARGO_TARGET_DIR:-target}/debug/utterd
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet 'schemathesis==4.32.5'

"$program" serve --listen 127.0.0.1:0 --data "$work/data" >"$work/said" 2>"$work/log" &
server=$!
address=
for _ in $(seq 100); do
  address=$(sed -n 's/^utterd listening on //p' "$work/said")
  [ -n "$address" ] && break
  sleep 0.1
done
[ -n "$address" ] || { echo "the server did not start"; cat "$work/log"; exit 1; }
"$program" node --url "ws://$address/ws/node" --id n1 --languages zh,en,es --capacity 16 >"$work/node" 2>&1 &
node=$!
# A real answer first: the node is there.
for _ in $(seq 100); do
  curl -fsS "http://$address/api/v1/nodes/n1" 2>/dev/null | grep -q '"state":"ready"' && break
  sleep 0.1
done

# What is described as 5xx is for servers in need; this one is not. A node that an operator drains is
# not there for the next recording, and pools that are replaced may have no place for it: both are
# asked by themselves, after the rest; so are keys, of which the first closes a door.
# (That check takes 412 for an acceptance: pools are asked without it.)
run() {
  local without=$1
  shift
  # It leaves a directory where it runs.
  cd "$work"
  "$work/venv/bin/schemathesis" run "http://$address/openapi.json" --url "http://$address" \
    --checks all --exclude-checks "ignored_auth,positive_data_acceptance$without" \
    --phases examples,coverage,fuzzing --max-examples 60 --seed 1 \
    --generation-database none --suppress-health-check all "$@"
}
# The server is not asked to stop, and not for what it tells without end.
run "" --max-time "$seconds" --exclude-operation-id drain --exclude-operation-id consoleView \
  --exclude-operation-id drainNode --exclude-operation-id replacePools \
  --exclude-operation-id putPool --exclude-operation-id setLogLevel --exclude-operation-id makeKey
run ,negative_data_rejection --max-time 20 --include-operation-id drainNode --include-operation-id replacePools \
  --include-operation-id putPool --include-operation-id setLogLevel --include-operation-id makeKey
kill -0 "$server"
if grep -n 'panicked' "$work/log"; then exit 1; fi
