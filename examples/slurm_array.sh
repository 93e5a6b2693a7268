#!/usr/bin/env bash
#SBATCH --job-name=kv-calibration
#SBATCH --array=0-7
# Calibrate as an array of jobs of Slurm: each observes its part of a text and leaves its counts.
#
#   sbatch --array=0-7 examples/slurm_array.sh MODEL TEXT FOLDER [further options of amct-pytorch calibrate]
#
# FOLDER must be on a file system that all machines have. A job that was ended, and is queued again, goes on where it
# was. Then `amct merge FOLDER/*.counts -o all.counts` and `amct solve all.counts -o record.txt`.
set -euo pipefail
model=$1 text=$2 folder=$3
shift 3
part=$((SLURM_ARRAY_TASK_ID - SLURM_ARRAY_TASK_MIN))

mkdir -p "$folder"
split --number="l/$((part + 1))/$SLURM_ARRAY_TASK_COUNT" "$text" >"$folder/part$part.txt"
amct-pytorch calibrate --model "$model" --text "$folder/part$part.txt" \
  --counts "$folder/part$part.counts" --record "$folder/part$part.record" \
  --snapshot "$folder/part$part.snapshot" --resume "$@"
