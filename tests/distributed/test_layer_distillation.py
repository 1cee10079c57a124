"""A shallow student learns from a trained model: two ranks, a stop and a resume, partitioned weights, and refusals."""

from __future__ import annotations

import json

import pytest
import torch
import yaml

from bnb_ds.checkpoint.store import whole_checkpoints
from bnb_ds.checkpoint.weights import read_weights
from bnb_ds.generate.pipeline import BnbPipeline
from bnb_ds.train.tracking import read_metrics

pytestmark = pytest.mark.slow

SIZE = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}
DS_CONFIG = {
    "train_batch_size": 8,
    "train_micro_batch_size_per_gpu": 2,
    "optimizer": {"type": "AdamW", "params": {"lr": 3e-3}},
}


@pytest.fixture
def launch(small_texts, small_tokenizer, tmp_path, fork_server):
    """Run a recipe; returns what it said."""
    rows = [{"source": " ".join(text.split()[:8]), "target": " ".join(text.split()[2:9])} for text in small_texts[:48]]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (tmp_path / "held_out.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows[:8]))
    small_tokenizer.save_pretrained(tmp_path / "tokenizer")
    common = {
        "task": "translation",
        "steps": 4,
        "data": {
            "train": str(tmp_path / "rows.jsonl"),
            "validation": str(tmp_path / "held_out.jsonl"),
            "tokenizer": str(tmp_path / "tokenizer"),
            "max_source_length": 32,
            "max_target_length": 40,
            "cache_dir": str(tmp_path / "cache"),
        },
        "intervals": {"log_steps": 1, "eval_steps": 2, "keep_checkpoints": 4},
    }

    def launch(name: str, recipe: dict, *more: str, ranks: int = 2, stage: int = 1, codes: int = 0) -> str:
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({**common, **recipe, "output_dir": str(tmp_path / name)}))
        ds_config = tmp_path / f"{name}.json"
        ds_config.write_text(json.dumps({**DS_CONFIG, "zero_optimization": {"stage": stage}}))
        arguments = [str(tmp_path / f"{name}.yaml"), "--deepspeed_config", str(ds_config), *more]
        job = fork_server.launch(arguments, tmp_path / f"{name}{len(more)}.log", ranks=ranks, program="finetune.py")
        assert job.wait() == [codes] * ranks, job.text()
        return job.text()

    return launch


def test_a_student_learns_from_its_teacher(launch, tmp_path):
    launch("teacher", {"model": {"kind": "bnb", "size": SIZE}, "steps": 2}, ranks=1)
    teacher = tmp_path / "teacher"
    student = {
        "model": {"kind": "bnb", "checkpoint": str(teacher / "best"), "decoder_layers": 1},
        "layer_distillation": {"teacher": str(teacher), "hidden": 0.5},
    }
    said = launch("whole", student)
    assert "layers       encoder 3, decoder 1 (from layers 0 of the checkpoint)" in said
    assert f"teacher      {teacher}: hidden 0.5 (encoder layers 0 1 2, decoder layers 2), logits 1" in said
    launch("stopped", student, "--stop-at", "2")
    weights = teacher / "best" / "model.safetensors"
    original = weights.read_bytes()
    weights.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))  # another model under the same name
    refused = launch("stopped", student, "--resume", "auto", codes=2)
    assert "the files of layer_distillation.teacher: " in refused
    weights.write_bytes(original)
    launch("stopped", student, "--resume", "auto")
    launch("partitioned", student, stage=3)
    launch("alone", {"model": student["model"]})

    runs = {
        name: read_metrics(tmp_path / name / "metrics.jsonl") for name in ("whole", "stopped", "partitioned", "alone")
    }
    whole, stopped, partitioned, alone = (
        [(row["step"], row["train/loss"]) for row in rows if "train/loss" in row] for rows in runs.values()
    )
    assert stopped == whole
    assert [loss for _, loss in partitioned] == pytest.approx([loss for _, loss in whole], rel=1e-3)
    assert all(loss > own for (_, loss), (_, own) in zip(whole[:1], alone[:1], strict=True)), (
        "the teacher adds its part"
    )
    trained = [read_weights(whole_checkpoints(tmp_path / name / "checkpoints")[-1]) for name in ("whole", "stopped")]
    assert all(torch.equal(weight, trained[1][name]) for name, weight in trained[0].items())
    pipeline = BnbPipeline.from_pretrained(tmp_path / "whole" / "best", device="cpu")
    assert len(pipeline(["a short text"])) == 1
    config = json.loads((tmp_path / "whole" / "best" / "config.json").read_text())
    assert config["taken_layers"] == {"decoder": [0]}
    assert config["decoder"]["num_hidden_layers"] == 1
