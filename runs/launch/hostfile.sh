#!/usr/bin/env bash
# Train on the hosts of a hostfile, or on this host alone, through the deepspeed launcher.
#
#   bash runs/launch/hostfile.sh [--hostfile FILE --num_nodes N] --num_gpus G [--interface NAME] [--master_port P] \
#       [--logs DIR] [runs/finetune.py] RECIPE --deepspeed_config JSON [--resume auto] [key.path=value ...]
#
#   runs/finetune.py   fine-tune; without it, pre-train (runs/pretrain.py)
#   --hostfile     one line `hostname slots=8` for each host, which pdsh reaches by ssh without a password
#   --interface    network interface that joins the hosts (default: found from the route to the first host)
#   --logs         directory for one log per rank; the first rank's is shown here (default work/logs/TIME)
#
# What the launcher leaves to be done is done here:
#   - variables reach the other hosts: PATH, and all that begin with NCCL_, GLOO_, TORCH_, HF_, OMP_, DS_, CUDA_ or BNB_;
#   - a host that is cut off ends the job: ssh asks for a sign of life every 5 s;
#   - SIGTERM, SIGUSR1 and Ctrl-C let the ranks save a checkpoint and end with exit code 0. The launcher itself would
#     end its ranks one after the other, and fail.
# Checkpoints and shards must be on storage that all hosts see, under the same path; so must this directory.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source runs/launch/common.sh

hostfile="" num_nodes=1 num_gpus="" interface="" master_port=29500 logs=work/logs/$(date +%Y%m%d-%H%M%S)
parse_options hostfile num_nodes num_gpus interface master_port logs -- "$@"
[[ $num_gpus =~ ^[1-9][0-9]*$ ]] || fail "--num_gpus: give the number of GPUs of a host"
if [ -n "$hostfile" ]; then
    [ -r "$hostfile" ] || fail "--hostfile $hostfile: no such file"
    command -v pdsh > /dev/null || fail "pdsh is not installed; install it, or use runs/slurm/pretrain.sbatch or torchrun.sh"
    where=(--hostfile "$(realpath "$hostfile")" --num_nodes "$num_nodes")
else
    [ "$num_nodes" = 1 ] || fail "--num_nodes $num_nodes needs --hostfile"
    where=()
fi

mkdir -p "$logs"
logs=$(realpath "$logs")
export BNB_STOP_FILE=$logs/stop
rm -f "$BNB_STOP_FILE"
use_interface "$interface"
export DS_ENV_FILE=$logs/environment
env | grep -E '^(PATH|(NCCL|GLOO|TORCH|HF|OMP|DS|CUDA|BNB)_[A-Za-z0-9_]*)=' > "$DS_ENV_FILE"
export PDSH_SSH_ARGS_APPEND="${PDSH_SSH_ARGS_APPEND:-} -o ServerAliveInterval=5 -o ServerAliveCountMax=3"

# In a session of its own: a Ctrl-C here is for this script, which passes it on in its own way.
setsid deepspeed "${where[@]}" --num_gpus "$num_gpus" --master_port "$master_port" --enable_each_rank_log "$logs" \
    "${program[@]}" > "$logs/launcher.log" 2>&1 &
launcher=$!
trap 'touch "$BNB_STOP_FILE"' TERM USR1 INT

first=""
while kill -0 "$launcher" 2> /dev/null && [ -z "$first" ]; do
    first=$(compgen -G "$logs/*_rank0.log" | head -n 1 || true)
    sleep 0.2 || true
done
shown=""
[ -z "$first" ] || { tail --pid="$launcher" -n +1 -f "$first" 2> /dev/null & shown=$!; }
code=0
wait_through_signals "$launcher" || code=$?
[ -z "$shown" ] || wait_through_signals "$shown" || true
rm -f "$BNB_STOP_FILE"
# Of a host's launcher that was killed the deepspeed command reports success.
if [ "$code" = 0 ] && [ -n "$first" ] && ! grep -qE '^(done|stopped|memory/GPU) ' "$first"; then
    code=1
fi
if [ "$code" != 0 ]; then
    echo "hostfile.sh: the job failed with exit code $code; one log per rank is in $logs" >&2
    grep -hE '(pretrain.py|finetune.py|bnb_ds): error' "$logs"/*_rank*.log "$logs/launcher.log" | sort -u >&2 || tail -n 20 "$logs/launcher.log" >&2
fi
exit "$code"
