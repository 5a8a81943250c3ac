#!/bin/bash
# Train on several machines under Slurm: one torchrun a machine, one process a GPU.
#
#   phi3v-data validate data/docvqa
#   sbatch examples/slurm.sh --data_dir data/docvqa --recipe docvqa-full-bf16 --parallel fsdp --output_dir runs/docvqa
#
# Everything behind the script's name goes to `phi3v-train run`. Data, model and output must lie where every machine
# sees them. Validate first: then the first process finds the receipt and the others do not wait for it.
# A job that is requeued after a lost machine goes on from its newest complete checkpoint.
#
#SBATCH --job-name=phi3v
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

set -euo pipefail

read -r MASTER_ADDR < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export MASTER_ADDR MASTER_PORT

# The machine's number is known only where srun starts the task, so the inner shell reads it. A process that ends badly
# ends its torchrun, and with --kill-on-bad-exit the machines that would wait for it.
srun --kill-on-bad-exit=1 bash -c '
    exec torchrun \
        --nnodes "$SLURM_NNODES" --node_rank "$SLURM_NODEID" --nproc_per_node "$SLURM_GPUS_ON_NODE" \
        --master_addr "$MASTER_ADDR" --master_port "$MASTER_PORT" \
        -m phi3v_train run "$@"
' phi3v "$@"
