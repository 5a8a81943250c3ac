#!/bin/bash
# Train on several machines under Slurm: one launcher per machine, which starts one process per GPU.
#
#   phi3v-data validate data/docvqa
#   sbatch examples/slurm.sh --data_dir data/docvqa --recipe docvqa-full-bf16 --parallel fsdp --output_dir runs/docvqa
#
# All arguments are passed to `phi3v-train run`. Data, model and output must be on a file system that all machines share.
# Validate first: then the first process finds the receipt, and the others do not have to wait for it.
# Ten minutes before the time limit Slurm sends SIGTERM to every process of the job: the run finishes the current step,
# saves a checkpoint and exits. A job that is queued again, after a lost machine or by hand, resumes from its newest
# complete checkpoint. How long a checkpoint takes: docs/hardware.md.
#
#SBATCH --job-name=phi3v
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

set -euo pipefail

read -r MASTER_ADDR < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export MASTER_ADDR MASTER_PORT

# The rank of the machine is only known inside the task that srun starts, so the inner shell reads it. A process that
# fails ends its launcher, and with --kill-on-bad-exit also the other machines, which would wait for it. A launcher that
# gets a signal waits for the checkpoint, however long it takes; torchrun would kill its processes after 30 seconds.
srun --kill-on-bad-exit=1 bash -c '
    exec python -m phi3v_train run \
        --nnodes "$SLURM_NNODES" --node_rank "$SLURM_NODEID" --num_processes "$SLURM_GPUS_ON_NODE" \
        --master_addr "$MASTER_ADDR" --master_port "$MASTER_PORT" "$@"
' phi3v "$@"
