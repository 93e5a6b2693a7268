#!/usr/bin/env bash
#SBATCH --job-name=kv-calibration
#SBATCH --array=0-7
# Calibrate as an array of jobs of Slurm: each observes its part of a text and leaves its counts.
#
#   sbatch --array=0-7 examples/slurm_array.sh MODEL TEXT FOLDER 8 [further options of amct-pytorch calibrate]
#
# The number is that of all parts, also where some are done again alone (--array=3).
# FOLDER must be on a file system that all machines have. A job that was ended, and is queued again, goes on where it
# was. Then `amct merge FOLDER/*.counts -o all.counts` and `amct solve all.counts -o record.txt`.
set -euo pipefail
model=$1 text=$2 folder=$3 parts=$4 part=$SLURM_ARRAY_TASK_ID
shift 4
if ! ((parts > 0 && part < parts)); then
  echo "job $part of the array is none of $parts parts, which are numbered from 0" >&2
  exit 2
fi

mkdir -p "$folder"
split --number="l/$((part + 1))/$parts" "$text" >"$folder/part$part.txt"
amct-pytorch calibrate --model "$model" --text "$folder/part$part.txt" \
  --counts "$folder/part$part.counts" --record "$folder/part$part.record" \
  --snapshot "$folder/part$part.snapshot" --resume "$@"
