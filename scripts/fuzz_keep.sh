#!/usr/bin/env bash
# Keeps in tests/fuzz/corpus some of what fuzzing found: inputs that together reach far.
# Usage: scripts/fuzz_keep.sh CORPUS TARGET...
# CORPUS has a folder for each target. Run `make fuzz` first, which builds the targets.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
readonly most_bytes=4000 most_inputs=40 kept=tests/fuzz/corpus
corpus=$1
shift
for target in "$@"; do
  merged=build/fuzz/merged/$target
  rm -rf "$merged"
  mkdir -p "$merged" "$kept/$target"
  build/fuzz/tests/fuzz/fuzz_"$target" -set_cover_merge=1 -max_len=$most_bytes -timeout=20 \
    -artifact_prefix=build/fuzz/crashes/"$target"- \
    "$merged" "$kept/$target" "$corpus/$target" build/fuzz/seeds/"$target" 2>build/fuzz/"$target".log
  # Names that begin with "crash" were kept by hand, and stay.
  find "$kept/$target" -type f ! -name 'crash*' -delete
  # From the smallest to the largest: small ones are quick, large ones reach far.
  find "$merged" -type f -printf '%s %p\n' | sort -n |
    awk -v most=$most_inputs '{ path[NR] = $2 } END {
      if (most > NR) most = NR
      for (i = 1; i <= most; i++) print path[int(i * NR / most)] }' |
    while read -r input; do cp "$input" "$kept/$target/"; done
  echo "$target: $(find "$kept/$target" -type f | wc -l) inputs, $(du -sb "$kept/$target" | cut -f1) bytes"
done
