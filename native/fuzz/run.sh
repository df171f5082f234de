#!/usr/bin/env bash
# Runs every fuzz target, so many executions in all; says how many there were, how fast, and with how
# much memory. Fails when a target found something: the input is then in build/fuzz, named by target.
#   run.sh FOLDER_OF_TARGETS EXECUTIONS [JOBS]
set -euo pipefail
targets=$(realpath "$1") wanted=$2 jobs=${3:-2}
seeds=$(realpath "$(dirname "$0")/corpus")
mkdir -p build/fuzz
work=$(realpath build/fuzz)

# Of a hundred executions; steps and syncs are the slow ones.
declare -A share=([load]=24 [numbers]=24 [sampler]=24 [cipher]=8 [step]=9 [mesh]=7 [measure]=3
  [front]=1)

# What no input may take: 10 seconds, 256 MiB at once, 1 GiB in all. A unit with leaks fails too.
one() {
  local name=$1 runs=$2
  mkdir -p "$work/$name"
  "$targets/fuzz_$name" -runs="$runs" -max_len=1024 -timeout=10 -malloc_limit_mb=256 \
    -rss_limit_mb=1024 -print_final_stats=1 -artifact_prefix="$work/$name-" \
    "$work/$name" "$seeds/$name" >"$work/$name.log" 2>&1 && return
  echo "fuzz: $name failed; the input and the log are $work/$name-* and $name.log" >&2
  grep -E 'does not hold|ERROR|SUMMARY|runtime error' "$work/$name.log" | head -n 5 >&2
  return 1
}
export -f one
export targets work seeds

for name in "${!share[@]}"; do
  echo "$name $((wanted * share[$name] / 100 + 1))"
done | sort -k1,1r | xargs -P "$jobs" -L 1 bash -c 'one "$@"' one

total=0
for name in load numbers sampler cipher step mesh measure front; do
  number() { sed -n "s/^stat::$1: *//p" "$work/$name.log"; }
  units=$(number number_of_executed_units)
  echo "fuzz: $name: $units executions, $(number average_exec_per_sec)/s," \
    "$(number peak_rss_mb) MiB at most"
  total=$((total + units))
done
echo "fuzz: $total executions in all"
((total >= wanted))
