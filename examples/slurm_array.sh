#!/bin/bash
# Convert a dataset as a Slurm array: each task converts one share of the parts, and the last one publishes the directory.
#
#   sbatch --array=1-32 examples/slurm_array.sh docvqa --source /shared/spdocvqa --out_dir /shared/data/docvqa
#
# All arguments are passed to `phi3v-data convert`, the same to every task. Source and directory must be on a file system
# that all machines share; file locks are not needed. Tasks may run in any order and any number at once.
# A task that was killed or ran out of time leaves its finished parts: submit the same array again, in which finished
# tasks end at once, or only the tasks that a message names, with the number of slices:
#
#   sbatch --array=3,7 --export=ALL,SLICES=32 examples/slurm_array.sh docvqa --source ... --out_dir ...
#
# A task exits with 1 if samples of its share could not be converted (see `--allow_rejects`).
#
#SBATCH --job-name=phi3v-data
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A-%a.log

set -euo pipefail

exec phi3v-data convert "$@" \
    --slice "$SLURM_ARRAY_TASK_ID/${SLICES:-$SLURM_ARRAY_TASK_MAX}" --workers "$SLURM_CPUS_PER_TASK"
