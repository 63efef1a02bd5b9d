#!/usr/bin/env bash
#SBATCH --job-name=gebm
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1     # one torchrun a machine, which starts a process for each GPU
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=04:00:00
#SBATCH --requeue               # after a failure the job starts again, and goes on from its last checkpoint
set -euo pipefail
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# `out` must be on a file system that all machines see.
srun .venv/bin/torchrun \
  --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node 8 --max-restarts 3 \
  --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID" --rdzv-endpoint "$head:29500" \
  examples/scale/run.py --backend pyro --out out/scale
