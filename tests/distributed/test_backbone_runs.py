"""The life of a model of each backbone: checks, pre-training, resuming, export, fine-tuning, generation, service."""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from transformers import AutoModel

from bnb_ds.checkpoint.store import whole_checkpoints
from bnb_ds.checkpoint.weights import read_weights
from bnb_ds.cli import main
from bnb_ds.evaluate.model import evaluate_model
from bnb_ds.export.from_run import export
from bnb_ds.generate.pipeline import BnbPipeline
from bnb_ds.train.tracking import read_metrics
from data_prep.sources.documents import Document
from tests.backbones import Halves, save_start
from tests.serving import running
from tests.shard_building import build_shards
from tests.subwords import byte_level, unigram

pytestmark = pytest.mark.slow

CASES = {
    "roberta": Halves("roberta"),
    "electra": Halves("electra"),
    "distilbert": Halves("distilbert"),
    "modernbert": Halves("modernbert"),
    "xlm-roberta and bert": Halves("xlm-roberta", "minilm"),
}
#: cases that are resumed too: in pre-training, and two halves in fine-tuning
RESUMED = ("roberta", "modernbert", "xlm-roberta and bert")
DS_CONFIG = {
    "train_batch_size": 8,
    "train_micro_batch_size_per_gpu": 4,
    "optimizer": {"type": "AdamW", "params": {"lr": 3e-3}},
    "zero_optimization": {"stage": 1},
}


class Runs:
    """The launches of a case, in a folder."""

    def __init__(self, folder, server) -> None:
        self._folder, self._server = folder, server
        self._ds_config = folder / "ds.json"
        self._ds_config.write_text(json.dumps(DS_CONFIG))

    def launch(self, program: str, name: str, recipe: dict, *more: str) -> None:
        path = self._folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump({**recipe, "output_dir": str(self._folder / name)}))
        if not more:
            assert main(["check", str(path), "--deepspeed-config", str(self._ds_config)]) == 0
        arguments = [str(path), "--deepspeed_config", str(self._ds_config), *more]
        log = self._folder / f"{name}{len(more)}.log"
        running_job = self._server.launch(arguments, log, ranks=1, program=program)
        assert running_job.wait() == [0], running_job.text()

    def compare_resumed(self, program: str, name: str, recipe: dict) -> None:
        """A run that is stopped and resumed ends with the bits of the one that was not."""
        self.launch(program, "stopped", recipe, "--stop-at", "2")
        self.launch(program, "stopped", recipe, "--resume", "auto")
        losses = [
            [
                (row["step"], row["train/loss"])
                for row in read_metrics(self._folder / run / "metrics.jsonl")
                if "train/loss" in row
            ]
            for run in (name, "stopped")
        ]
        assert losses[0] == losses[1]
        weights = [read_weights(whole_checkpoints(self._folder / run / "checkpoints")[-1]) for run in (name, "stopped")]
        assert all(torch.equal(weight, weights[1][key]) for key, weight in weights[0].items())


@pytest.fixture
def starts(request, small_tokenizer, tmp_path):
    """The checkpoints of a case, each with a tokenizer of its family."""
    case = CASES[request.param]
    tokenizers = {"roberta": byte_level, "modernbert": byte_level, "xlm-roberta": unigram}
    of = {family: tokenizers.get(family, lambda: small_tokenizer)() for family in (case.encoder, case.target)}
    encoder = save_start(tmp_path / "encoder", case.encoder, of[case.encoder])
    decoder = None if case.decoder is None else save_start(tmp_path / "decoder", case.decoder, of[case.decoder], 2)
    return request.param, encoder, decoder, of[case.encoder]


@pytest.mark.parametrize("starts", CASES, indirect=True)
def test_the_life_of_a_model(starts, small_texts, tmp_path, fork_server):
    name, encoder, decoder, tokenizer = starts
    runs = Runs(tmp_path, fork_server)
    model = {"encoder": str(encoder), "hidden_dropout": 0.2}
    if decoder is None:
        documents = (Document(str(i), text, "") for i, text in enumerate(small_texts))
        build_shards(documents, tmp_path / "shards", tokenizer)
        recipe = {
            "steps": 3,
            "model": model,
            "data": {"shards": str(tmp_path / "shards"), "max_length": 24},
            "objective": {"encoder_mlm_weight": 1.0},
            "intervals": {"log_steps": 1, "eval_steps": 3, "checkpoint_steps": 2, "eval_samples": 5},
        }
        runs.launch("pretrain.py", "pretrained", recipe)
        if name in RESUMED:
            runs.compare_resumed("pretrain.py", "pretrained", recipe)
        export(tmp_path / "pretrained", tmp_path / "start")
        export(tmp_path / "pretrained", tmp_path / "plain", encoder_only=True)
        plain = AutoModel.from_pretrained(tmp_path / "plain")
        assert plain.config.model_type == {"distilbert": "bert"}.get(name, name)
        assert plain(**tokenizer("a text", return_tensors="pt")).last_hidden_state.isfinite().all()
        model = {"checkpoint": str(tmp_path / "start")}
    else:
        model["decoder"] = str(decoder)

    rows = [{"source": " ".join(text.split()[:8]), "target": " ".join(text.split()[2:9])} for text in small_texts[:24]]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    recipe = {
        "task": "translation",
        "steps": 3,
        "model": {"kind": "bnb", **model},
        "data": {
            **{split: str(tmp_path / "rows.jsonl") for split in ("train", "validation")},
            "max_source_length": 60,
            "max_target_length": 60,
            "cache_dir": str(tmp_path / "cache"),
        },
        "intervals": {"log_steps": 1, "eval_steps": 3, "keep_checkpoints": 3},
    }
    runs.launch("finetune.py", "tuned", recipe)
    if decoder is not None and name in RESUMED:
        runs.compare_resumed("finetune.py", "tuned", recipe)
    export(tmp_path / "tuned", tmp_path / "exported")
    pipeline = BnbPipeline.from_pretrained(tmp_path / "exported", device="cpu")
    texts = pipeline([row["source"] for row in rows])
    written = evaluate_model(tmp_path / "tuned", output=tmp_path / "written").directory / "generated_predictions.txt"
    assert written.read_text() == "".join(f"{text}\n" for text in texts)
    with running(pipeline) as client:
        answer = client.post("/generate", json={"texts": [row["source"] for row in rows[:3]]}).json()
    assert [output["text"] for output in answer["outputs"]] == texts[:3]
