#!/usr/bin/env bash
# Train on several hosts through torchrun, started on each of them; needs no ssh, and restarts what fails.
#
#   bash runs/launch/torchrun.sh --nodes N --gpus G --master HOST[:PORT] [--interface NAME] [--restarts R] [--logs DIR] \
#       [runs/finetune.py] RECIPE --deepspeed_config JSON [key.path=value ...]
#
#   runs/finetune.py   fine-tune; without it, pre-train (runs/pretrain.py)
#   --master       the host that the others meet at, one of them
#   --interface    network interface that joins the hosts (default: found from the route to the master)
#   --restarts     times that the ranks are started again, from the last checkpoint, when one has failed (default 3)
#   --logs         directory for one log per rank; all ranks are shown here too (default work/logs/TIME)
#
# SIGTERM, SIGUSR1 and Ctrl-C let the ranks of all hosts save a checkpoint and end with exit code 0.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source runs/launch/common.sh

nodes=1 gpus="" master=127.0.0.1 interface="" restarts=3 logs=work/logs/$(date +%Y%m%d-%H%M%S)
parse_options nodes gpus master interface restarts logs -- "$@"
[[ $gpus =~ ^[1-9][0-9]*$ ]] || fail "--gpus: give the number of GPUs of this host"
[ "$nodes" = 1 ] || [ "$master" != 127.0.0.1 ] || fail "--nodes $nodes needs --master: the host that the others meet at"
use_interface "$interface"
case $master in *:*) endpoint=$master ;; *) endpoint=$master:29500 ;; esac

mkdir -p "$logs"
setsid torchrun --nnodes "$nodes" --nproc-per-node "$gpus" --max-restarts "$restarts" --rdzv-backend c10d \
    --rdzv-endpoint "$endpoint" --rdzv-id "${BNB_JOB_ID:-bnb}" --log-dir "$logs" --tee 3 \
    "${program[@]}" --resume auto &
launcher=$!
# torchrun itself would end the ranks after 30 s and fail; told one by one they save, and it ends well.
trap 'pkill -TERM --parent "$launcher" || true' TERM USR1 INT
code=0
wait_through_signals "$launcher" || code=$?
exit "$code"
