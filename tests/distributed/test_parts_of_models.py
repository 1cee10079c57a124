"""Runs that train a part of a model: adapters, layers that are not frozen, layers that begin later."""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import BertConfig, BertForMaskedLM, BertModel

from bnb_ds.checkpoint.merging import plain_weights
from bnb_ds.checkpoint.store import best_checkpoint, whole_checkpoints
from bnb_ds.checkpoint.weights import read_weights
from bnb_ds.cli import main
from bnb_ds.evaluate.model import evaluate_model
from bnb_ds.export.from_run import export_average
from bnb_ds.modeling import BnbConfig, BnbForConditionalGeneration
from bnb_ds.train.tracking import read_metrics
from tests.distributed.test_finetuning import Run
from tests.launching import REPOSITORY

pytestmark = [pytest.mark.slow]

SIZE = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": 64}
QUIET = {"hidden_dropout": 0.0, "attention_dropout": 0.0}
LORA = {"lora": {"rank": 4, "targets": ["query", "value", "feed-forward"], "dropout": 0.1}}
ALL = {**LORA, "layerwise_decay": 0.8, "unfreezing": {"steps": 2}, "freeze": ["embeddings"]}


@pytest.fixture(scope="module")
def made(small_tokenizer, tmp_path_factory):
    """Checkpoints with halves of different depth and with tied halves, and the files of two small tasks."""
    folder = tmp_path_factory.mktemp("made")
    bert = {**SIZE, "vocab_size": len(small_tokenizer), "num_hidden_layers": 2}
    special = {"bos_token_id": small_tokenizer.cls_token_id, "eos_token_id": small_tokenizer.sep_token_id}
    for name, halves in (
        ("whole", {"decoder": {**bert, "num_hidden_layers": 3}}),
        ("tied", {"decoder": bert, "tie_encoder_decoder": True}),
    ):
        torch.manual_seed(0)
        config = BnbConfig(encoder=bert, **halves, **special, decoder_positions="shared", pad_token_id=0)
        BnbForConditionalGeneration(config).save_pretrained(folder / name)
        small_tokenizer.save_pretrained(folder / name)
    for split in ("train", "validation"):
        rows = [{"sentence": f"the {'good' if i % 2 else 'bad'} film {i}", "label": i % 2} for i in range(64)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        texts = [{"document": f"the film {i} is good or bad", "summary": f"film {i}"} for i in range(64)]
        (folder / f"{split}_texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
    return folder


def labels(made, **more) -> dict:
    data = {split: str(made / f"{split}.jsonl") for split in ("train", "validation")}
    model = {"kind": "bnb", "checkpoint": str(made / "whole"), **QUIET}
    return {"task": "sst2", "model": model, "data": data, "steps": 6, **more}


def texts(made, checkpoint: str, **more) -> dict:
    data = {split: str(made / f"{split}_texts.jsonl") for split in ("train", "validation")}
    model = {"kind": "bnb", "checkpoint": str(made / checkpoint), **QUIET}
    return {"task": "summarization", "model": model, "data": data, "steps": 6, **more}


def zero(stage: int) -> dict:
    return {"zero_optimization": {"stage": stage, **({"stage3_param_persistence_threshold": 0} if stage == 3 else {})}}


def newest(run: Run):
    return whole_checkpoints(run.output / "checkpoints")[-1]


def losses(run: Run) -> list[float]:
    return [row["train/loss"] for row in read_metrics(run.output / "metrics.jsonl") if "train/loss" in row]


def train(run: Run, server, *more: str, ranks: int = 2) -> str:
    codes, text = run.fork(server, *more, ranks=ranks)
    assert codes == [0] * ranks, text
    return text


@pytest.mark.parametrize("stage", [1, 3])
def test_a_run_is_resumed_exactly_and_with_other_ranks(stage, made, tmp_path, fork_server):
    """The stops lie before steps at which layers begin, and between."""
    recipe = texts(made, "tied" if stage == 1 else "whole", **{**ALL, "lora": {**LORA["lora"], "dropout": 0.0}})
    whole, stopped, elastic = (Run(tmp_path, name, recipe, **zero(stage)) for name in ("whole", "stopped", "elastic"))
    text = train(whole, fork_server)
    assert "parameters, of which" in text
    assert "lora         rank 4, scale 2, on" in text
    assert "rates        " in text
    assert "groups of layers, from the top: one more every 2 steps" in text
    for stop in ("2", "6"):
        train(stopped, fork_server, "--resume", "auto", "--stop-at", stop)
    ours, theirs = read_weights(newest(stopped)), read_weights(newest(whole))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(weight, theirs[name]) for name, weight in ours.items())
    assert losses(stopped) == losses(whole)
    for ranks, stop in ((2, "4"), (1, "6")):
        train(elastic, fork_server, "--resume", "auto", "--stop-at", stop, ranks=ranks)
    assert losses(elastic) == pytest.approx(losses(whole), abs=2e-4)
    for name, weight in read_weights(newest(elastic)).items():
        if not name.endswith("key.bias"):
            assert (weight - theirs[name]).abs().max() < 2e-4, name
    assert_frozen(made / ("tied" if stage == 1 else "whole"), theirs)


def assert_frozen(checkpoint, weights) -> None:
    """Without adapters the weights of layers are those of the checkpoint."""
    before = load_file(checkpoint / "model.safetensors")
    for name, weight in before.items():
        found = weights.get(name, weights.get(".base_layer.".join(name.rsplit(".", 1))))
        if ".layer." in name or name.endswith("word_embeddings.weight"):
            assert torch.equal(found, weight), name


def test_the_shipped_recipe_at_a_small_size(made, small_tokenizer, tmp_path, fork_server):
    bert = BertModel(BertConfig(**SIZE, num_hidden_layers=2, vocab_size=len(small_tokenizer)))
    bert.save_pretrained(tmp_path / "bert")
    small_tokenizer.save_pretrained(tmp_path / "bert")
    rows = [f"{i % 5}.{i % 3}\tthe film {i}\ta film {i % 7}\n" for i in range(64)]
    for name in ("train", "validation"):
        (tmp_path / f"{name}.tsv").write_text("score\tsentence1\tsentence2\n" + "".join(rows))
    recipe = yaml.safe_load((REPOSITORY / "runs" / "recipes" / "finetune" / "stsb_lora.yaml").read_text())
    recipe["model"]["encoder"] = str(tmp_path / "bert")
    recipe["data"] |= {name: str(tmp_path / f"{name}.tsv") for name in ("train", "validation")}
    recipe["data"]["max_source_length"] = 32
    for replaced in ("output_dir", "epochs", "intervals"):
        del recipe[replaced]
    run = Run(tmp_path, "run", recipe, optimizer={"type": "AdamW", "params": {"lr": 3e-2}})
    text = train(run, fork_server, ranks=1)
    assert "lora         rank 8, scale 2, on 8 matrices (self-attention); trained too: head" in text
    assert "rates        0.902 to 1 times the peak rate, by layer" in text
    rows = [row for row in read_metrics(run.output / "metrics.jsonl") if "train/lr" in row]
    assert all(row["train/lr_min"] == pytest.approx(0.95**2 * row["train/lr"]) for row in rows[:-1])

    best, trained = load_file(run.output / "best" / "model.safetensors"), read_weights(newest(run))
    assert not any("lora" in name or "base_layer" in name for name in best)
    assert any(".lora_A." in name for name in trained)
    before = bert.state_dict()
    for name, weight in best.items():
        part = name.removeprefix("model.encoder.").replace("layer.", "encoder.layer.", 1)
        if name.startswith("model.encoder."):
            is_adapted = ".attention." in name and name.endswith(".weight") and "LayerNorm" not in name
            assert torch.equal(weight, before[part]) != is_adapted, name
    # What is evaluated is the merged model, and it scores as the model with its adapters did.
    scored = evaluate_model(run.output)
    step = max(row["step"] for row in read_metrics(run.output / "metrics.jsonl"))
    logged = {row["step"]: row for row in read_metrics(run.output / "metrics.jsonl") if "eval/loss" in row}
    chosen = best_checkpoint(whole_checkpoints(run.output / "checkpoints"))
    assert scored.scores["loss"] == pytest.approx(logged[int(chosen.name[-8:])]["eval/loss"], abs=1e-4)

    assert step == 4
    found = export_average([run.output], tmp_path / "mean", last=2)
    wanted = [plain_weights(path) for path in found]
    for name, weight in load_file(tmp_path / "mean" / "model.safetensors").items():
        torch.testing.assert_close(weight, (wanted[0][name] + wanted[1][name]) / 2)
    codes, text = run.fork(fork_server, "--resume", "auto", "lora.rank=4", ranks=1)
    assert codes[0] == 2
    assert "was started with different settings: lora.rank: 8 -> 4" in text


def test_a_bert2bert_with_tied_halves(made, small_tokenizer, tmp_path, fork_server):
    """The new cross-attention is trained with the adapters, from weights alone too."""
    bert = BertForMaskedLM(BertConfig(**SIZE, num_hidden_layers=2, vocab_size=len(small_tokenizer)))
    bert.save_pretrained(tmp_path / "bert")
    small_tokenizer.save_pretrained(tmp_path / "bert")
    lora = {**LORA["lora"], "also": ["head", "cross-attention"]}
    model = {"kind": "bert2bert", "encoder": str(tmp_path / "bert"), "tie_encoder_decoder": True}
    recipe = {**texts(made, "whole"), "model": model, "lora": lora}
    run = Run(tmp_path, "run", recipe)
    train(run, fork_server, "--stop-at", "2", ranks=1)
    text = train(run, fork_server, "--resume", "auto", "--resume-weights-only", ranks=1)
    assert "with a fresh optimizer" in text
    best = load_file(run.output / "best" / "model.safetensors")
    assert not any("lora" in name for name in best)
    scored = evaluate_model(run.output)
    chosen = best_checkpoint(whole_checkpoints(run.output / "checkpoints"))
    logged = {row["step"]: row for row in read_metrics(run.output / "metrics.jsonl") if "eval/loss" in row}
    assert scored.scores["loss"] == pytest.approx(logged[int(chosen.name[-8:])]["eval/loss"], abs=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["lora.targets=[query-key-value]"],
            "lora.targets query-key-value: the model has no such matrix; it has atten",
        ),
        (["lora.rank=40"], "lora.rank 40: a chosen matrix has 32 rows or columns"),
        (["lora.also=[decoder]"], "lora.also decoder: the model has no such part; remove it"),
        (["freeze=[decoder]"], "freeze decoder: the model has no such part; remove it"),
        (["freeze=[encoder,head]"], "freeze encoder, head: nothing is left to train; remove one of them"),
    ],
)
def test_what_a_model_has_not_is_refused_by_checks_too(made, tmp_path, capsys, settings, message):
    run = Run(tmp_path, "run", labels(made))
    assert main(["check", *run.arguments(*settings)]) == 2
    shown = capsys.readouterr().out
    assert f"error  weights to train: {message}" in shown
    assert main(["finetune", *run.arguments(*settings, "--dry-run")]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert not run.output.exists()
