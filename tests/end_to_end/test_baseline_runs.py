"""A baseline model is trained on two ranks, stopped, resumed, evaluated, and used as a teacher."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import BertForMaskedLM

from bnb_ds.checkpoint.weights import read_weights
from bnb_ds.cli import main
from bnb_ds.data.tokenization import save_tokenizer
from bnb_ds.train.tracking import read_metrics
from tests.tiny import bert_config

pytestmark = pytest.mark.slow

DS_CONFIG = {
    "train_batch_size": 8,
    "train_micro_batch_size_per_gpu": 4,
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-2}},
}
SIZE = (
    "{hidden_size: 32, encoder_layers: 1, decoder_layers: 1, num_attention_heads: 2, intermediate_size: 32,"
    " max_position_embeddings: 64}"
)
RECIPE = """
output_dir: {output}
task: {task}
epochs: 4
model: {model}
data: {data}
intervals: {{log_steps: 1}}
"""


def finetune(server, folder, name, recipe: dict[str, str], *more: str, stage: int = 1):
    """Train on two ranks; returns the output directory."""
    output = folder / name
    (folder / f"{name}.yaml").write_text(RECIPE.format(output=output, **recipe))
    zero = {"stage": stage, **({"stage3_param_persistence_threshold": 0} if stage == 3 else {})}
    (folder / f"{name}.json").write_text(json.dumps({**DS_CONFIG, "zero_optimization": zero}))
    arguments = [str(folder / f"{name}.yaml"), "--deepspeed_config", str(folder / f"{name}.json"), *more]
    launch = server.launch(arguments, folder / f"{name}{len(more)}.log", program="finetune.py")
    assert launch.wait() == [0, 0], launch.text()
    return output


@pytest.fixture(scope="module")
def parallel(small_texts, small_tokenizer, tmp_path_factory):
    """The recipe of a small Transformer that learns to copy."""
    folder = tmp_path_factory.mktemp("parallel")
    save_tokenizer(small_tokenizer, folder / "tokenizer")
    lines = [" ".join(text.split()[:6]) + "\n" for text in small_texts]
    (folder / "train.txt").write_text("".join(lines[:64]))
    (folder / "validation.txt").write_text("".join(lines[64:75]))
    files = ", ".join(
        f"{name}: {{source: {folder / name}.txt, target: {folder / name}.txt}}" for name in ("train", "validation")
    )
    data = f"{{{files}, tokenizer: {folder / 'tokenizer'}, max_source_length: 32, max_target_length: 32,"
    data += f" cache_dir: {folder / 'cache'}}}"
    return {"task": "translation", "model": f"{{kind: transformer, size: {SIZE}}}", "data": data}


def test_a_transformer_is_trained_resumed_scored_and_teaches(parallel, fork_server, tmp_path):
    whole = finetune(fork_server, tmp_path, "whole", parallel)
    stopped = finetune(fork_server, tmp_path, "stopped", parallel, "--stop-at", "17")
    finetune(fork_server, tmp_path, "stopped", parallel, "--resume", "auto")
    weights, resumed = (read_weights(max(run.glob("checkpoints/step_*"))) for run in (whole, stopped))
    assert all(torch.equal(weights[name], resumed[name]) for name in weights)

    losses = [row["train/loss"] for row in read_metrics(whole / "metrics.jsonl") if "train/loss" in row]
    assert losses[-1] < losses[0] - 1

    scores = []
    for batch_size in ("1", "64"):
        command = ["evaluate", str(whole), "--batch-size", batch_size, "--output", str(tmp_path / batch_size)]
        assert main(command) == 0
        scores.append(json.loads((tmp_path / batch_size / "eval_results.json").read_text())["scores"])
    assert {**scores[0], "loss": 0} == {**scores[1], "loss": 0}

    assert (whole / "best" / "spacing.json").is_file(), "the model keeps where spaces stand in its training targets"
    results = json.loads((tmp_path / "1" / "eval_results.json").read_text())
    assert results["ceilings"]["bleu"] > 90
    assert "ceiling      validation: bleu " in (tmp_path / "whole0.log").read_text()
    assert "validation: 11 rows read, 11 kept, 0 left out" in (tmp_path / "whole0.log").read_text()

    distilled = tmp_path / "train.jsonl"
    assert main(["distill", str(whole), "--output", str(distilled)]) == 0
    assert len(distilled.read_text().splitlines()) == 64


def test_bert2bert_writes_while_zero_3_has_taken_its_weights_apart(parallel, fork_server, tmp_path):
    recipe = {**parallel, "model": f"{{kind: bert2bert, size: {SIZE}}}"}
    output = finetune(fork_server, tmp_path, "zero3", recipe, stage=3)
    assert (output / "best" / "model.safetensors").is_file()


def test_a_classifier_is_trained_on_labels(small_texts, small_tokenizer, fork_server, tmp_path, capsys):
    save_tokenizer(small_tokenizer, tmp_path / "bert")
    size = {"hidden_size": 32, "num_attention_heads": 2, "max_position_embeddings": 64}
    BertForMaskedLM(bert_config(vocab_size=len(small_tokenizer), **size)).save_pretrained(tmp_path / "bert")
    lines = [f"{' '.join(text.split()[:8])}\t{int('a' in text[:9])}\n" for text in small_texts]
    for name, part in (("train", lines[:64]), ("validation", lines[64:90])):
        (tmp_path / f"{name}.tsv").write_text("sentence\tlabel\n" + "".join(part))
    data = f"{{train: {tmp_path / 'train.tsv'}, validation: {tmp_path / 'validation.tsv'}, max_source_length: 32,"
    data += f" cache_dir: {tmp_path / 'cache'}}}"
    model = f"{{kind: classifier, checkpoint: {tmp_path / 'bert'}}}"
    output = finetune(fork_server, tmp_path, "labels", {"task": "sst2", "model": model, "data": data})
    assert main(["evaluate", str(output)]) == 0
    assert "accuracy" in capsys.readouterr().out
