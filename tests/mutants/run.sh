#!/usr/bin/env bash
# Plants each fault of this directory into a copy of the sources, and has the simulator look for it:
# every one must be found, by a judge that says so. Prints a table; fails if a mutant survives.
#
#   tests/mutants/run.sh [SEEDS] [PATTERN]     SEEDS per mutant (2000), patches named *PATTERN*
set -uo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
seeds=${1:-2000}
pattern=${2:-}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# The dependencies that are built already serve the copies too.
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$root/target}
survivors=0
echo "| mutant | killed at seed | by |"
echo "|---|---|---|"
for patch in "$root"/tests/mutants/*"$pattern"*.patch; do
  name=$(basename "$patch" .patch)
  rm -rf "$work/utterd" && mkdir "$work/utterd"
  cp -r "$root"/{Cargo.toml,Cargo.lock,src} "$work/utterd/"
  [ -d "$root/benches" ] && cp -r "$root/benches" "$work/utterd/"
  if ! patch -s -p1 -d "$work/utterd" < "$patch"; then
    echo "| $name | does not apply | |"; survivors=$((survivors + 1)); continue
  fi
  if ! (cd "$work/utterd" && cargo build -q --bin utterd 2> "$work/build.log"); then
    echo "| $name | does not build | |"; tail -5 "$work/build.log" >&2
    survivors=$((survivors + 1)); continue
  fi
  cp "$CARGO_TARGET_DIR/debug/utterd" "$work/mutant"
  "$work/mutant" simulate --seed 1 --seeds "$seeds" > "$work/out" 2>&1
  seed=$(grep -o 'utterd simulate --seed [0-9]*' "$work/out" | grep -o '[0-9]*$')
  if [ -z "$seed" ]; then
    echo "| $name | survived $seeds | |"; survivors=$((survivors + 1))
  else
    sentence=$(grep '^utterd: ' "$work/out" | head -1 | cut -c9-)
    echo "| $name | $seed | ${sentence:0:110} |"
  fi
done
[ "$survivors" -eq 0 ]
