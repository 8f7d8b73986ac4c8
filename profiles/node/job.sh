#!/bin/bash -l
# Run the study on one node of Polaris for an hour: qsub -A PROJECT profiles/node/job.sh
#PBS -q debug
#PBS -l select=1:system=polaris
#PBS -l place=scatter
#PBS -l walltime=01:00:00
#PBS -l filesystems=home:eagle
#PBS -k doe
#PBS -j oe
#PBS -r n

cd "$PBS_O_WORKDIR" || exit 1
source .venv/bin/activate
export TMPDIR=/tmp HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1
umask 022
# SIGTERM to Snakemake and all its jobs before PBS kills them: fine-tunings save, no lock stays. Change it with the walltime.
exec timeout 55m snakemake --profile profiles/node "$@"
