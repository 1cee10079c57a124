#!/usr/bin/env bash
# Train on several hosts through torchrun. Start this script on each host. It needs no ssh, and restarts failed ranks.
#
#   bash runs/launch/torchrun.sh --nodes N --gpus G --master HOST[:PORT] [--interface NAME] [--restarts R] [--logs DIR] \
#       [runs/finetune.py] RECIPE --deepspeed-config JSON [key.path=value ...]
#
#   Of an installed package, the script is "$(bnb-ds path torchrun)".
#
#   runs/finetune.py   fine-tune (default: pre-train with runs/pretrain.py)
#   --master       one of the hosts, to which all others connect
#   --interface    network interface that connects the hosts (default: found from the route to the master)
#   --restarts     how often failed ranks are restarted from the last checkpoint (default 3)
#   --logs         directory for one log per rank; all ranks are also shown here (default work/logs/TIME)
#
# On SIGTERM, SIGUSR1 or Ctrl-C the ranks of all hosts save a checkpoint and end with exit code 0.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

nodes=1 gpus="" master=127.0.0.1 interface="" restarts=3 logs=work/logs/$(date +%Y%m%d-%H%M%S)
parse_options nodes gpus master interface restarts logs -- "$@"
[[ $gpus =~ ^[1-9][0-9]*$ ]] || fail "--gpus: give the number of GPUs of this host"
[ "$nodes" = 1 ] || [ "$master" != 127.0.0.1 ] || fail "--nodes $nodes needs --master: the host to which all others connect"
use_interface "$interface"
case $master in *:*) endpoint=$master ;; *) endpoint=$master:29500 ;; esac

make_logs "$logs" --logs
setsid torchrun --nnodes "$nodes" --nproc-per-node "$gpus" --max-restarts "$restarts" --rdzv-backend c10d \
    --rdzv-endpoint "$endpoint" --rdzv-id "${BNB_JOB_ID:-bnb}" --log-dir "$logs" --tee 3 \
    "${program[@]}" --resume auto &
launcher=$!
# torchrun would kill the ranks after 30 s, and fail. If the ranks get the signal directly, they save and end normally.
trap 'pkill -TERM --parent "$launcher" || true' TERM USR1 INT
code=0
wait_through_signals "$launcher" || code=$?
exit "$code"
