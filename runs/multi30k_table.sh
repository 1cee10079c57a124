#!/usr/bin/env bash
# Train the systems of RESULTS.md's Multi30k table on a CPU, one after another, and measure them beside each other. A
# repeated command goes on where it was stopped.
#
#   bash runs/multi30k_table.sh [--list] [--train] [--seeds N] [SYSTEM ...]
#
#   SYSTEM    a system of the table (default: all)
#   --list    only show the commands
#   --train   only train
#   --seeds   train each system with at most so many seeds (default: three for the main ones, one for the others)
#
# It needs work/multi30k/{train,val,test_2016_flickr}.{en,de}, one sentence a line.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

source runs/tables.sh

# All systems train for 9 epochs: 4,079 steps of 64 sentences.
systems() {
    cat <<'SYSTEMS'
transformer 3 multi30k_teacher epochs=9 model.size.intermediate_size=256 model.size.initializer_range=0.1 | Transformer, greedy:num_beams=1; Transformer, beam 5:num_beams=5
ctc 3 multi30k_bnb | CTC; CTC, blank penalty 1:blank_penalty=1.0
glancing 3 multi30k_glancing | CTC, glancing; CTC, glancing, blank penalty 1:blank_penalty=1.0
dag 3 multi30k_dag | graph, greedy:strategy=greedy; graph, look-ahead:strategy=lookahead; graph, joint Viterbi:strategy=joint_viterbi; graph, beam:strategy=beam
token 1 multi30k_token | token, 1 pass:refinement=0; token, mask-predict 4:refinement=3
encoder_ctc 1 multi30k_encoder_ctc | encoder alone, CTC; encoder alone, CTC, blank penalty 1:blank_penalty=1.0
shallow_6_1 1 multi30k_shallow_6_1 | CTC, 6 and 1 layers; CTC, 6 and 1 layers, blank penalty 1:blank_penalty=1.0
shallow_6_2 1 multi30k_shallow_6_2 | CTC, 6 and 2 layers; CTC, 6 and 2 layers, blank penalty 1:blank_penalty=1.0
shallow_6_6 1 multi30k_shallow_6_6 | CTC, 6 and 6 layers; CTC, 6 and 6 layers, blank penalty 1:blank_penalty=1.0
nat 1 multi30k_nat | NAT
inat 1 multi30k_inat | iNAT
cmlm 1 multi30k_cmlm | CMLM, 1 pass:refinement=0; CMLM, 10 passes
elmer 1 multi30k_elmer | ELMER, soft; ELMER, hard:exit_entropy=0.5
bert2bert 1 multi30k_bert2bert | BERT2BERT, greedy:num_beams=1
distilled 1 multi30k_distilled | CTC, distilled; CTC, distilled, blank penalty 1:blank_penalty=1.0
distilled_glancing 1 multi30k_glancing data.train=work/multi30k/train.distilled.jsonl | CTC, glancing, distilled; CTC, glancing, distilled, blank penalty 1:blank_penalty=1.0
distilled_dag 1 multi30k_dag data.train=work/multi30k/train.distilled.jsonl | graph, distilled, greedy:strategy=greedy; graph, distilled, look-ahead:strategy=lookahead; graph, distilled, joint Viterbi:strategy=joint_viterbi; graph, distilled, beam:strategy=beam
SYSTEMS
}

data=work/multi30k runs=work/runs/multi30k_table
files=("$data"/{train,val,test_2016_flickr}.{en,de})
finetuning=(--deepspeed-config ds_configs/cpu_finetune.json intervals.eval_steps=1359)
comparing=(--split test --score bleu --batch-size 1 8 32
    --output work/multi30k_table --picture work/multi30k_table/frontier.svg)

prepare() {
    [ -d "$data/vocabulary" ] || do_or_show bnb-ds prep vocab --input "$data/train.en" "$data/train.de" \
        --txt-documents line --vocab-size 3000 --output "$data/vocabulary"
}

before() {
    [[ $1 != distilled* || -f $data/train.distilled.jsonl ]] ||
        do_or_show bnb-ds distill "$runs/transformer-1" --output "$data/train.distilled.jsonl"
}

read_arguments "$@"
make_table
