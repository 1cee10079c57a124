#!/usr/bin/env bash
# Train on the hosts of a hostfile, or on this host only, through the deepspeed launcher.
#
#   bash runs/launch/hostfile.sh [--hostfile FILE --num_nodes N] --num_gpus G [--interface NAME] [--master_port P] \
#       [--logs DIR] [runs/finetune.py] RECIPE --deepspeed-config JSON [--resume auto] [key.path=value ...]
#
#   Of an installed package, the script is "$(bnb-ds path hostfile)".
#
#   runs/finetune.py   fine-tune (default: pre-train with runs/pretrain.py)
#   --hostfile     file with one line `hostname slots=8` per host; pdsh must reach the hosts by ssh without a password
#   --interface    network interface that connects the hosts (default: found from the route to the first host)
#   --logs         directory for one log per rank; the log of rank 0 is also shown here (default work/logs/TIME)
#
# This script adds to the launcher:
#   - Environment variables are passed to the other hosts: PATH, and those that begin with NCCL_, GLOO_, TORCH_, HF_,
#     OMP_, DS_, CUDA_ or BNB_.
#   - The job ends if a host is unreachable: ssh checks the connection every 5 s.
#   - On SIGTERM, SIGUSR1 or Ctrl-C the ranks save a checkpoint and end with exit code 0. The launcher alone would stop
#     its ranks one by one, and fail.
# All hosts must see this directory, the checkpoints and the shards under the same paths.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

hostfile="" num_nodes=1 num_gpus="" interface="" master_port=29500 logs=work/logs/$(date +%Y%m%d-%H%M%S)
parse_options hostfile num_nodes num_gpus interface master_port logs -- "$@"
[[ $num_gpus =~ ^[1-9][0-9]*$ ]] || fail "--num_gpus: give the number of GPUs of a host"
if [ -n "$hostfile" ]; then
    [ -r "$hostfile" ] || fail "--hostfile $hostfile: no such file"
    command -v pdsh > /dev/null || fail "pdsh is not installed; install it, or use torchrun.sh or pretrain.sbatch"
    where=(--hostfile "$(realpath "$hostfile")" --num_nodes "$num_nodes")
else
    [ "$num_nodes" = 1 ] || fail "--num_nodes $num_nodes needs --hostfile"
    where=()
fi

make_logs "$logs" --logs
logs=$(realpath "$logs")
export BNB_STOP_FILE=$logs/stop
rm -f "$BNB_STOP_FILE"
use_interface "$interface"
export DS_ENV_FILE=$logs/environment
env | grep -E '^(PATH|(NCCL|GLOO|TORCH|HF|OMP|DS|CUDA|BNB)_[A-Za-z0-9_]*)=' > "$DS_ENV_FILE"
export PDSH_SSH_ARGS_APPEND="${PDSH_SSH_ARGS_APPEND:-} -o ServerAliveInterval=5 -o ServerAliveCountMax=3"

# The launcher gets its own session, so that Ctrl-C reaches only this script, which then asks the ranks to stop.
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
# The deepspeed command reports success even if the launcher of a host was killed.
if [ "$code" = 0 ] && [ -n "$first" ] && ! grep -qE '^(done|stopped|memory/GPU) ' "$first"; then
    code=1
fi
if [ "$code" != 0 ]; then
    echo "hostfile.sh: the job failed with exit code $code; one log per rank is in $logs" >&2
    grep -hE '(pretrain.py|finetune.py|bnb_ds): error' "$logs"/*_rank*.log "$logs/launcher.log" | sort -u >&2 || tail -n 20 "$logs/launcher.log" >&2
fi
exit "$code"
