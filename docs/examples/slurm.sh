#!/usr/bin/env bash
#SBATCH --job-name=sslgh
#SBATCH --gpus-per-node=8
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@300
# A run that outlives its job:  sbatch docs/examples/slurm.sh RUN_DIR RECIPE [key=value ...]
# Five minutes before the time is up SLURM signals this script (B:), which passes it on; the run saves and
# leaves, and the job is queued again to resume. What ended is read from status.json: a launcher's exit
# code does not tell.
set -uo pipefail
run_dir=$1
shift
asked=
begun=$(mktemp)

# torchrun dies of SIGUSR1 unless --signals-to-handle lists it; 30 seconds later it kills the remaining processes.
python -m torch.distributed.run --standalone --nproc-per-node="${SLURM_GPUS_ON_NODE:-1}" \
  --signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 \
  -m sslgh.pretrain "$@" "run_dir=$run_dir" &
launcher=$!
trap 'asked=yes; kill -USR1 "$launcher"' USR1
trap 'asked=yes; kill -TERM "$launcher"' TERM
# A signal ends `wait`, not what it waits for.
while kill -0 "$launcher" 2>/dev/null; do wait "$launcher"; done
wait "$launcher"
code=$?

state=
# A status that is older than this job is not its own.
if [ "$run_dir/status.json" -nt "$begun" ]; then
  state=$(sed -n 's/.*"state": "\([a-z]*\)".*/\1/p' "$run_dir/status.json")
fi
# "running": the signal came before the first step, or while the last files were written.
if [ "$state" = stopped ] || { [ -n "$asked" ] && [ "$state" != done ] && [ "$state" != failed ]; }; then
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
fi
exit "$code"
