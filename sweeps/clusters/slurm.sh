#!/bin/bash
# One sweep on a SLURM cluster: a Ray node on each node of the job, the driver beside the first.
#
#   sbatch sweeps/clusters/slurm.sh SWEEP.yaml SHARED_WORKSPACE [more arguments of `harness run`]
#
# Run it again after any end: it goes on. README.md has what to edit, and what to do when it fails.

# EDIT: number of nodes; all CPUs and all GPUs of one node; time; and partition and account where asked for.
#SBATCH --nodes=4
#SBATCH --cpus-per-task=32
#SBATCH --gpus-per-node=4
#SBATCH --time=24:00:00

#SBATCH --job-name=harness
#SBATCH --output=harness-%j.log
#SBATCH --open-mode=append
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --mem=0
# A lost node costs its trials an attempt; the others go on.
#SBATCH --no-kill
# Five minutes before the time is up this script is told, and queues the job again.
#SBATCH --signal=B:USR1@300
#SBATCH --requeue

set -euo pipefail
set -m # each background job leads a process group and heeds SIGINT, which a script's jobs ignore otherwise

usage="usage: sbatch slurm.sh SWEEP.yaml SHARED_WORKSPACE [more arguments of harness run]"
sweep=${1:?$usage}
workspace=${2:?$usage}
shift 2

# EDIT: where `harness`, `ray` and `python` are, on every node. Load modules here.
PATH="${HARNESS_BIN:-$PWD/.venv/bin}:$PATH"
export PATH RAY_USAGE_STATS_ENABLED=0

# A token of this job's own: no other user's Ray, and no earlier one of the same address, can join or be joined.
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token
ulimit -Sn "$(ulimit -Hn)" # Ray opens many sockets; srun carries the limit to every node

JOIN_SECONDS=${JOIN_SECONDS:-300}
STOP_SECONDS=200 # less than --signal gives

# The head's address as the other nodes see it. HEAD_IP chooses one where nodes have several networks.
head_ip=${HEAD_IP:-}
if [[ -z $head_ip ]]; then
  for ip in $(hostname --ip-address) $(hostname --all-ip-addresses); do
    [[ $ip == 127.* || $ip == *:* ]] || { head_ip=$ip && break; }
  done
fi
: "${head_ip:?no address found for $SLURMD_NODENAME; set HEAD_IP}"
port=$((20000 + SLURM_JOB_ID % 10000))

# A job step of one Ray node per SLURM node, with all that the node has; it lasts until the step is ended.
# The object store holds plans and rows, never pictures or weights. Sockets lie in the node's own temporary
# folder, named by the job: another user's there would be refused.
ray_step() { # number of nodes, which ones (an option of srun), then arguments of `ray start`
  exec srun --nodes="$1" --ntasks="$1" "$2" --cpus-per-task="$SLURM_CPUS_PER_TASK" \
    --no-kill --kill-on-bad-exit=0 \
    ray start "${@:3}" --block --disable-usage-stats \
    --num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="${SLURM_GPUS_ON_NODE:-0}" \
    --object-store-memory=2000000000 --temp-dir="${NODE_TMP:-/tmp}/ray-$SLURM_JOB_ID"
}

running() { kill -0 "$1" 2> /dev/null; }

fail() {
  echo "slurm.sh: $1" >&2
  exit 1
}

# The head is last, so that it sees the others leave.
end_ray() {
  local job
  for job in "${driver:-}" "${workers:-}" "${head:-}"; do
    [[ -z $job ]] || { kill "$job" && wait "$job"; } 2> /dev/null || true
  done
}
trap end_ray EXIT
trap 'exit 143' TERM

ray_step 1 --nodelist="$SLURMD_NODENAME" --head --node-ip-address="$head_ip" --port="$port" \
  --include-dashboard=false &
head=$!
until (: < "/dev/tcp/$head_ip/$port") 2> /dev/null; do
  running "$head" || fail "Ray's head did not start on $SLURMD_NODENAME"
  ((SECONDS < JOIN_SECONDS)) || fail "Ray's head does not answer at $head_ip:$port"
  sleep 1
done

if ((SLURM_JOB_NUM_NODES > 1)); then
  ray_step $((SLURM_JOB_NUM_NODES - 1)) --exclude="$SLURMD_NODENAME" --address="$head_ip:$port" &
  workers=$!
fi

export RAY_ADDRESS="$head_ip:$port" # from here on python and harness use this cluster
python - "$SLURM_JOB_NUM_NODES" "$JOIN_SECONDS" << 'PY' &
import sys, time
import ray

wanted, seconds = map(int, sys.argv[1:])
ray.init(logging_level="ERROR", log_to_driver=False)
deadline = time.monotonic() + seconds
while len(joined := [node for node in ray.nodes() if node["Alive"]]) < wanted:
    if time.monotonic() > deadline:
        names = ", ".join(sorted(node["NodeManagerHostname"] for node in joined))
        sys.exit(f"slurm.sh: only {len(joined)} of {wanted} nodes joined in {seconds} s: {names}")
    time.sleep(1)
has = ray.cluster_resources()
print(f"Ray: {len(joined)} nodes, {has['CPU']:g} CPU, {has.get('GPU', 0):g} GPU", flush=True)
PY
driver=$!
while running "$driver"; do
  running "${workers:-$head}" || fail "Ray did not start on the other nodes"
  sleep 1
done
wait "$driver"

harness run "$sweep" --workspace "$workspace" "$@" &
driver=$!
again=
stop_by=
# shellcheck disable=SC2317,SC2329 # the traps call it
stop() {
  kill -INT "$driver" 2> /dev/null || true
  stop_by=${stop_by:-$((SECONDS + STOP_SECONDS))}
}
trap 'again=yes; stop' USR1
trap stop TERM
while running "$driver" && running "$head" && ((SECONDS < ${stop_by:-SECONDS + 1})); do sleep 1; done

running "$head" || echo "slurm.sh: Ray's head was lost; run the job again to go on" >&2
kill -KILL "$driver" 2> /dev/null || true # where it outlived the head or its time; what is finished is kept
status=0
wait "$driver" || status=$?
driver=
if [[ $again && $status != 0 ]]; then
  end_ray
  echo "slurm.sh: the time is nearly up; the job is queued again and will go on"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
