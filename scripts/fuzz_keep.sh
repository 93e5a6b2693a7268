#!/usr/bin/env bash
# Keeps in tests/fuzz/corpus, of what fuzzing found, the small inputs that reach what no smaller one does.
# Usage: scripts/fuzz_keep.sh CORPUS TARGET...
# CORPUS has a folder for each target. Run `make fuzz` first, which builds the targets.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
readonly most_bytes=2000 most_inputs=120 kept=tests/fuzz/corpus
corpus=$1
shift
for target in "$@"; do
  merged=build/fuzz/merged/$target
  rm -rf "$merged"
  mkdir -p "$merged" "$kept/$target"
  build/fuzz/tests/fuzz/fuzz_"$target" -merge=1 -max_len=$most_bytes -timeout=20 \
    -artifact_prefix=build/fuzz/crashes/"$target"- \
    "$merged" "$kept/$target" "$corpus/$target" build/fuzz/seeds/"$target" 2>build/fuzz/"$target".log
  # Names that begin with "crash" were kept by hand, and stay.
  find "$kept/$target" -type f ! -name 'crash*' -delete
  find "$merged" -type f -printf '%s %p\n' | sort -n | head -$most_inputs | while read -r _ input; do
    cp "$input" "$kept/$target/"
  done
  echo "$target: $(find "$kept/$target" -type f | wc -l) inputs, $(du -sb "$kept/$target" | cut -f1) bytes"
done
