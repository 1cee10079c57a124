"""The life of each non-autoregressive kind: training, resuming, evaluation, export, generation, service."""

from __future__ import annotations

import json

import pytest
import torch
import yaml

from bnb_ds.baselines.settings import TransformerSection
from bnb_ds.checkpoint.store import whole_checkpoints
from bnb_ds.checkpoint.weights import read_weights
from bnb_ds.evaluate.model import evaluate_model
from bnb_ds.evaluate.predict import predict
from bnb_ds.export.from_run import export
from bnb_ds.finetune.distillation import DistillJob, distill
from bnb_ds.generate.pipeline import BnbPipeline
from bnb_ds.systems.baselines import Transformer
from bnb_ds.tasks.codec import Codec
from bnb_ds.tasks.registry import get_task
from bnb_ds.tasks.text_lengths import Lengths
from bnb_ds.train.tracking import read_metrics
from tests.backbones import RUN_POSITIONS, save_start
from tests.serving import running
from tests.subwords import unigram

pytestmark = pytest.mark.slow

SIZE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 80,
    "initializer_range": 0.2,  # large, so that sources have different outputs
}
KINDS = {
    "nat": {"length_beam": 2},
    "inat": {"iterations": 4},
    "cmlm": {"iterations": 3, "length_beam": 2},
    "elmer": {"exit_entropy": 5.0},
    "encoder_ctc": {"masks": 1, "embedding_anchor": 0.1},
}
DS_CONFIG = {
    "train_batch_size": 8,
    "train_micro_batch_size_per_gpu": 2,
    "optimizer": {"type": "AdamW", "params": {"lr": 3e-3}},
}


def recipe_of(kind: str, folder, small_texts, small_tokenizer) -> dict:
    rows = [{"source": " ".join(text.split()[:8]), "target": " ".join(text.split()[2:9])} for text in small_texts[:48]]
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (folder / "held_out.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows[:13]))
    small_tokenizer.save_pretrained(folder / "tokenizer")
    train = folder / "rows.jsonl"
    if kind in ("nat", "encoder_ctc"):  # two of them learn what a teacher writes
        train = distilled(folder, train, small_tokenizer)
    start, tokenizer, longest = {"size": SIZE}, folder / "tokenizer", 40
    if kind == "encoder_ctc":  # and one begins with an XLM-R
        start = {"encoder": str(save_start(folder / "start", "xlm-roberta", unigram()))}
        tokenizer, longest = folder / "start", RUN_POSITIONS // 2
    return {
        "task": "translation",
        "steps": 4,
        "model": {"kind": kind, **start, **KINDS[kind]},
        "data": {
            "train": str(train),
            "validation": str(folder / "held_out.jsonl"),
            "tokenizer": str(tokenizer),
            "max_source_length": longest,
            "max_target_length": 40,
            "cache_dir": str(folder / "cache"),
        },
        "intervals": {"log_steps": 1, "eval_steps": 2, "keep_checkpoints": 4},
    }


def distilled(folder, rows, tokenizer):
    """The rows with targets that an untrained Transformer writes."""
    size = {**SIZE, "encoder_layers": 1, "decoder_layers": 1}
    del size["num_hidden_layers"]
    section = TransformerSection(kind="transformer", size=size, num_beams=1)
    system = Transformer(get_task("translation"), Lengths(40, 8), Codec(tokenizer, tokenizer), section)
    model = system.build()
    model.save_pretrained(folder / "teacher")
    system.save_files(model.config, folder / "teacher")
    overrides = [f"data.train={rows}", f"data.cache_dir={folder / 'cache'}"]
    distill(DistillJob(folder / "teacher", folder / "distilled.jsonl", overrides=overrides))
    return folder / "distilled.jsonl"


@pytest.mark.parametrize("kind", KINDS)
def test_the_life_of_a_model(kind, small_texts, small_tokenizer, tmp_path, fork_server):
    recipe = recipe_of(kind, tmp_path, small_texts, small_tokenizer)

    def launch(name: str, *more: str, ranks: int = 2, stage: int = 1) -> None:
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({**recipe, "output_dir": str(tmp_path / name)}))
        ds_config = tmp_path / f"{name}.json"
        ds_config.write_text(json.dumps({**DS_CONFIG, "zero_optimization": {"stage": stage}}))
        arguments = [str(tmp_path / f"{name}.yaml"), "--deepspeed_config", str(ds_config), *more]
        log = tmp_path / f"{name}{len(more)}.log"
        running_job = fork_server.launch(arguments, log, ranks=ranks, program="finetune.py")
        assert running_job.wait() == [0] * ranks, running_job.text()

    launch("whole")
    launch("stopped", "--stop-at", "2")
    launch("stopped", "--resume", "auto")
    # Partitioned weights: all ranks take part in all passes, also when they decode.
    launch("partitioned", stage=3)
    runs = {name: read_metrics(tmp_path / name / "metrics.jsonl") for name in ("whole", "stopped", "partitioned")}
    for tag in ("train/loss", "validation/loss", "validation/bleu"):
        whole, stopped, partitioned = ([(r["step"], r[tag]) for r in rows if tag in r] for rows in runs.values())
        assert stopped == whole
        assert [value for _, value in partitioned] == pytest.approx([value for _, value in whole], rel=1e-3)
    weights = [read_weights(whole_checkpoints(tmp_path / name / "checkpoints")[-1]) for name in ("whole", "stopped")]
    assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())

    one, many = (evaluate_model(tmp_path / "whole", batch_size=size, output=tmp_path / str(size)) for size in (1, 64))
    assert one.scores == many.scores
    written = [(tmp_path / size / "generated_predictions.txt").read_text() for size in ("1", "64")]
    assert written[0] == written[1]
    if kind != "encoder_ctc":  # which predicts no lengths
        oracle = evaluate_model(tmp_path / "whole", oracle_length=True)
        assert oracle.scores["loss"] == one.scores["loss"]

    export(tmp_path / "whole", tmp_path / "exported")
    assert "BnbPipeline" in (tmp_path / "exported" / "README.md").read_text()
    sources = [json.loads(line)["source"] for line in (tmp_path / "held_out.jsonl").read_text().splitlines()]
    pipeline = BnbPipeline.from_pretrained(tmp_path / "exported", device="cpu", refinement=None, length_beam=None)
    texts = pipeline(sources)
    assert "".join(f"{text}\n" for text in texts) == written[0], "generation decodes as the evaluation did"
    predict(tmp_path / "whole", tmp_path / "held_out.jsonl", tmp_path / "predicted.jsonl")
    lines = (tmp_path / "predicted.jsonl").read_text().splitlines()
    assert [json.loads(line)["text"] for line in lines] == texts
    with running(pipeline) as client:
        answer = client.post("/generate", json={"texts": sources[:3], "return_slots": True}).json()
    assert [output["text"] for output in answer["outputs"]] == texts[:3]
