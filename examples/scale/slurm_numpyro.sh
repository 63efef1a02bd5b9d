#!/usr/bin/env bash
#SBATCH --job-name=gebm
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1     # one process a machine, which has all of its GPUs
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=04:00:00
#SBATCH --requeue               # after a failure the job starts again, and goes on from its last checkpoint
set -euo pipefail
# jax.distributed.initialize() reads SLURM's variables. `out` must be on a file system that all machines see.
srun .venv/bin/python examples/scale/run.py --backend numpyro --out out/scale
