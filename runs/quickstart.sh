#!/usr/bin/env bash
# The whole pipeline on one machine: text -> vocabulary -> token shards -> pre-training (stopped half-way and resumed)
# -> exported model -> generated text. It takes minutes on two CPU cores. A second run reuses finished stages.
#
#   bash runs/quickstart.sh [--corpus FILE_OR_DIR] [--steps N] [--work DIR]
#
#   --corpus   your text (.txt, .jsonl, .csv, .tsv or .parquet; default: the documentation of Python and of the packages)
#   --steps    optimizer steps (default 500)
#   --work     directory for all files (default work/quickstart, or work/quickstart-NAME for a corpus called NAME)
set -euo pipefail
caller=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() { sed -n '2,/^set/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2; exit 2; }
fail() { echo "quickstart: error: $1" >&2; exit 2; }
absolute() { case $1 in /*) echo "$1" ;; *) echo "$caller/$1" ;; esac; }

corpus="" steps=500 work=""
while [ $# -gt 0 ]; do
    case $1 in
        --corpus|--steps|--work) [ $# -ge 2 ] || fail "$1 needs a value" ;;&
        --corpus) corpus=$(absolute "$2") ;;
        --steps) steps=$2 ;;
        --work) work=$(absolute "$2") ;;
        *) usage ;;
    esac
    shift 2
done
[[ $steps =~ ^[1-9][0-9]*$ ]] && [ "$steps" -ge 2 ] || fail "--steps $steps: give a whole number of at least 2"
[ -z "$corpus" ] || [ -e "$corpus" ] || fail "--corpus $corpus: no such file or directory"
work=${work:-work/quickstart${corpus:+-$(basename "${corpus%.*}")}}
# A checkout may be read-only.
can_make() {
    local place=$1
    until [ -e "$place" ]; do place=$(dirname "$place"); done
    [ -d "$place" ] && [ -w "$place" ]
}
can_make "$work" || fail "$work: there is no permission to write there; name another directory with --work"
venv=${BNB_VENV:-.venv}
[ -x "$venv/bin/python" ] || can_make "$venv" || fail "$venv: cannot make the environment there; name another directory with BNB_VENV"

stage() { printf '\n== %s\n' "$1"; }
started=$SECONDS

stage "environment"
source runs/environment.sh
use_environment
mkdir -p "$work"
# Two ranks show data parallelism, and the batch can be divided by two. A resume keeps the number of ranks.
{ read -r found; read -r gpus; read -r ranks; } < <(python - <<'PYTHON'
import os, platform, torch
gpus = torch.cuda.device_count()
print(f"Python {platform.python_version()}, torch {torch.__version__},",
      f"{gpus} GPUs" if gpus else "no GPU: training on the CPU")
print(gpus)
print(min(2, gpus or len(os.sched_getaffinity(0))))
PYTHON
)
echo "$found"
# Without a GPU, DeepSpeed prints a warning in every process unless this is set.
[ "$gpus" -gt 0 ] || export DS_ACCELERATOR=cpu
devices=(--num_gpus "$ranks")
# --num_gpus would ignore the GPUs that the user has chosen.
[ -z "${CUDA_VISIBLE_DEVICES:-}" ] || devices=(--include "localhost:$(cut -d, -f"-$ranks" <<<"$CUDA_VISIBLE_DEVICES")")

stage "corpus"
# Files may be reused only if they were made from the same text.
identity=$work/corpus.identity
identify() { [ -z "$corpus" ] && echo documentation || find "$corpus" -type f -exec sha256sum {} + | sort; }
if [ -e "$identity" ]; then
    [ "$(identify)" = "$(cat "$identity")" ] ||
        fail "$work was made from another corpus; choose another --work, or delete it"
else
    identify > "$identity"
fi
if [ -z "$corpus" ]; then
    corpus=$work/documentation.jsonl
    if [ -e "$corpus" ]; then echo "reusing $corpus"; else bnb-ds prep docs --output "$corpus"; fi
else
    echo "yours: $corpus"
fi

stage "vocabulary"
tokenizer=$work/tokenizer
if [ -e "$tokenizer" ]; then
    echo "reusing $tokenizer"
else
    bnb-ds prep vocab --input "$corpus" --output "$tokenizer" --vocab-size 4096 --uncased
fi

stage "token shards"
shards=$work/shards
if [ -e "$shards/manifest.json" ]; then
    echo "reusing $shards"
else
    bnb-ds prep text --input "$corpus" --tokenizer "$tokenizer" --output "$shards" --holdout 0.05
fi

run=$work/run-$steps
pretrain() {
    local port
    port=$(python -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')
    deepspeed --log_level error "${devices[@]}" --master_port "$port" \
        runs/pretrain.py runs/recipes/pretrain/quickstart.yaml --deepspeed-config ds_configs/quickstart.json \
        --resume auto "$@" steps="$steps" data.shards="$shards" output_dir="$run"
}
last=$(printf 'step_%08d' "$steps")
half=$(printf 'step_%08d' $((steps / 2)))
if [ -e "$run/checkpoints/$last/checkpoint.json" ]; then
    stage "pre-training"
    echo "reusing $run"
else
    stage "pre-training, first half (on $ranks ranks, stopped at step $((steps / 2)))"
    if [ -e "$run/checkpoints/$half" ]; then echo "reusing $run/checkpoints/$half"; else pretrain --stop-at $((steps / 2)); fi
    stage "pre-training, resumed to step $steps"
    pretrain
fi
bnb-ds curves "$run"

stage "export"
model=$work/model-$steps
if [ -e "$model" ]; then echo "reusing $model"; else bnb-ds export "$run" "$model"; fi

stage "reconstruction of held-out text with masked words"
bnb-ds reconstruct "$model" --shards "$shards" --num 3 --max-length 24

stage "done in $((SECONDS - started)) s"
cat <<TEXT
watch the run:   $(command -v tensorboard) --logdir $run/runs
use the model:   echo "the function returns a [MASK] object" | $(command -v bnb-ds) generate $model --input - --output -
TEXT
