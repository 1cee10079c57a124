"""Fine-tune a pre-trained model on every family of tasks with real data; then evaluate and resume."""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from huggingface_hub import ModelCard

from bnb_ds import cli
from bnb_ds.checkpoint.store import best_checkpoint, read_state, whole_checkpoints
from bnb_ds.checkpoint.weights import read_weights
from bnb_ds.evaluate.model import evaluate_model
from bnb_ds.export.from_run import export
from bnb_ds.train.tracking import read_metrics, read_scalars
from tests import launching

pytestmark = pytest.mark.slow

DS_CONFIG = {
    "train_batch_size": 8,
    "train_micro_batch_size_per_gpu": 2,
    "optimizer": {"type": "AdamW", "params": {"lr": 3e-3, "weight_decay": 0.01}},
    "zero_optimization": {"stage": 1},
}
SIZE = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}


class Run:
    """A fine-tuning run: its recipe, and methods to launch it."""

    def __init__(self, folder, name: str, recipe: dict, **ds_changes):
        folder.mkdir(exist_ok=True)
        self.output = folder / name
        self.recipe = folder / f"{name}.yaml"
        recipe = {
            "output_dir": str(self.output),
            "steps": 4,
            "intervals": {"log_steps": 1, "eval_steps": 2, "keep_checkpoints": 4},
            **recipe,
        }
        recipe["data"] = {
            "max_source_length": 32,
            "max_target_length": 16,
            "max_train_samples": 60,
            "max_validation_samples": 21,
            "cache_dir": str(folder / "cache"),
            **recipe["data"],
        }
        self.recipe.write_text(yaml.safe_dump(recipe))
        self.ds_config = folder / f"{name}.json"
        self.ds_config.write_text(json.dumps({**DS_CONFIG, **ds_changes}))

    def arguments(self, *more: str) -> list[str]:
        return [str(self.recipe), "--deepspeed_config", str(self.ds_config), *more]

    def launch(self) -> str:
        result = launching.run([*launching.launcher(2), "runs/finetune.py", *self.arguments()])
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    def fork(self, server, *more: str, ranks: int = 2) -> tuple[list[int], str]:
        log = self.recipe.with_suffix(f".{len(list(self.recipe.parent.glob('*.log')))}.log")
        launch = server.launch(self.arguments(*more), log, ranks=ranks, program="finetune.py")
        return launch.wait(), launch.text()


@pytest.fixture(scope="module")
def pretrained(whole_run, tmp_path_factory):
    """An exported model after eight steps of pre-training."""
    directory = tmp_path_factory.mktemp("pretrained") / "model"
    export(whole_run.output, directory)
    return str(directory)


def family(name: str, data, pretrained: str) -> dict:
    """A recipe on real data."""
    model = {"kind": "bnb", "checkpoint": pretrained}
    translation, squad = data / "translation" / "multi30k", str(data / "squad" / "dev-v1.1.json.gz")
    return {
        "labels": {
            "task": "mrpc",
            "model": model,
            "data": {
                "train": str(data / "glue" / "MRPC" / "msr_paraphrase_train.txt.gz"),
                "columns": {"sentence1": "#1 String", "sentence2": "#2 String", "label": "Quality"},
                "split": {"validation": 0.1},
            },
        },
        "summaries": {
            "task": "summarization",
            "model": {**model, "decoder_length": "predicted"},
            "data": {
                split: str(data / "summarization" / "meqsum" / f"{split}.jsonl.gz") for split in ("train", "validation")
            },
        },
        "questions": {
            "task": "squad_qg",
            "model": model,
            "data": {"train": squad, "split": {"validation": 0.1, "test": 0.1}},
        },
        "translation": {
            "task": "translation",
            "model": {"kind": "bnb", "size": SIZE},
            "data": {
                "train": {
                    half: str(translation / f"train.{end}.gz") for half, end in (("source", "en"), ("target", "de"))
                },
                "validation": {
                    half: str(translation / f"val.{end}.gz") for half, end in (("source", "en"), ("target", "de"))
                },
                "tokenizer": pretrained,
                "target_tokenizer": str(data / "tokenizers" / "bert-base-cased"),
            },
        },
    }[name]


@pytest.mark.parametrize("name", ["labels", "summaries", "questions", "translation"])
def test_a_family_trains_is_evaluated_and_generates(name, shared_data, pretrained, tmp_path, capsys, fork_server):
    run = Run(tmp_path, "run", family(name, shared_data, pretrained))
    if name == "questions":  # one of them through the launcher
        printed = run.launch()
    else:
        codes, printed = run.fork(fork_server)
        assert codes == [0, 0], printed
    assert "done         step 4 of 4" in printed
    scalars = read_scalars(run.output / "runs")
    assert [step for step, _ in scalars["eval/loss"]] == [2, 4]
    whole = whole_checkpoints(run.output / "checkpoints")
    chosen = best_checkpoint(whole)
    assert f"best         {chosen.name} -> {run.output / 'best'}" in printed
    one, many = (evaluate_model(run.output, batch_size=size, output=tmp_path / str(size)) for size in (1, 64))
    assert one.scores == many.scores
    for file in ("generated_predictions.txt", "references.txt"):
        written = (tmp_path / "1" / file).read_text()
        assert written == (tmp_path / "64" / file).read_text()
        assert written.count("\n") == one.results["num_samples"] > 10
    step = int(chosen.name[-8:])
    score = one.results["main_score"]
    assert one.scores[score] == pytest.approx(dict(scalars[f"eval/{score}"])[step], abs=2e-3)
    listed = ModelCard.load(run.output / "best" / "README.md").data.eval_results
    assert {result.metric_name: result.metric_value for result in listed}[score] == pytest.approx(
        one.scores[score], abs=2e-3
    )
    assert cli.main(["evaluate", str(run.output), "--split", "validation"]) == 0
    shown = capsys.readouterr().out
    assert str(run.output / "best" / "evaluation") in shown
    assert score in shown
    assert cli.main(["compare", str(tmp_path / "1"), str(tmp_path / "64"), "--resamples", "20"]) == 0
    assert "difference +0.00" in capsys.readouterr().out
    if "split" in family(name, shared_data, pretrained)["data"]:
        assert len((run.output / "splits" / "validation.ids.txt").read_text().splitlines()) == len(
            set((run.output / "splits" / "validation.ids.txt").read_text().splitlines())
        )


def test_a_second_phase_on_ngrams(tmp_path, shared_data, pretrained, fork_server):
    """The same losses on one and on two ranks, a mean over samples that lies in [0, 1]; scores are those of any run."""
    recipe = family("questions", shared_data, pretrained)
    losses = []
    for ranks in (1, 2):
        quiet = {"model": {**recipe["model"], "hidden_dropout": 0.0, "attention_dropout": 0.0}, "ngram_size": 2}
        run = Run(tmp_path, f"ranks{ranks}", {**recipe, **quiet})
        codes, text = run.fork(fork_server, ranks=ranks)
        assert codes == [0] * ranks, text
        rows = read_metrics(run.output / "metrics.jsonl")
        losses.append([row["train/loss"] for row in rows if "train/loss" in row])
        assert any("eval/bleu4" in row for row in rows), rows
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert len(losses[0]) == 4
    assert all(0 < loss <= 1 for loss in losses[0])
    codes, text = run.fork(fork_server, "model.checkpoint=null", "model.encoder=bert", f"output_dir={tmp_path / 'new'}")
    assert codes[0] == 2
    assert "ngram_size: such a phase begins with a trained model; name it with model.checkpoint" in text


@pytest.fixture
def films(tmp_path):
    """A file of labelled texts that a small model can learn."""
    lines = [json.dumps({"sentence": f"the {'good' if i % 2 else 'bad'} film {i}", "label": i % 2}) for i in range(64)]
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return {split: str(tmp_path / f"{split}.jsonl") for split in ("train", "validation")}


def labels_run(folder, name, films, pretrained, **more) -> Run:
    model = {"kind": "bnb", "checkpoint": pretrained}
    return Run(folder, name, {"task": "sst2", "model": model, "data": films, **more})


def test_an_interrupted_run_resumes_exactly(tmp_path, films, pretrained, fork_server):
    whole, stopped = (labels_run(tmp_path, name, films, pretrained, steps=6) for name in ("whole", "stopped"))
    assert whole.fork(fork_server)[0] == [0, 0]
    codes, text = stopped.fork(fork_server, "--stop-at", "3")
    assert codes == [0, 0], text
    assert not (stopped.output / "best").exists()
    codes, text = stopped.fork(fork_server, "--resume", "auto")
    assert codes == [0, 0], text
    ours, theirs = (read_metrics(run.output / "metrics.jsonl") for run in (stopped, whole))
    for tag in ("train/loss", "eval/loss", "eval/accuracy"):
        assert [(r["step"], r[tag]) for r in ours if tag in r] == [(r["step"], r[tag]) for r in theirs if tag in r]
    weights = [read_weights(whole_checkpoints(run.output / "checkpoints")[-1]) for run in (stopped, whole)]
    assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())
    codes, text = stopped.fork(fork_server, "--resume", "auto", "data.max_source_length=31")
    assert codes[0] == 2
    assert "was started with different settings: data.max_source_length: 32 -> 31" in text


def test_early_stopping_survives_a_restart(tmp_path, films, pretrained, fork_server):
    """The score cannot improve, so with patience 2 the third evaluation is the last, even across launches."""
    settings = {
        "steps": 20,
        "intervals": {"log_steps": 1, "eval_steps": 1},
        "selection": {"patience": 2, "score": "loss"},
        "schedule": {"warmup_ratio": 0.0},
    }
    still = {"optimizer": {"type": "AdamW", "params": {"lr": 1e-30}}}
    run = labels_run(tmp_path, "run", films, pretrained, **settings)
    run.ds_config.write_text(json.dumps({**DS_CONFIG, **still}))
    assert run.fork(fork_server, "--stop-at", "2")[0] == [0, 0]
    codes, text = run.fork(fork_server, "--resume", "auto")
    assert codes == [0, 0], text
    assert "ends early   at step 3: the last evaluations brought no better score" in text
    assert read_state(whole_checkpoints(run.output / "checkpoints")[-1])["early_stopping"]["since_best"] == 2
    assert (run.output / "best" / "task.json").is_file()
    codes, text = run.fork(fork_server, "--resume", "auto")
    assert codes == [0, 0], text
    assert "done         step 3 of 20" in text


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("task=sst3", "task: unknown task 'sst3': did you mean 'sst2'?"),
        ("selection.split=test", "selection.split: 'test': choosing a model on a test split is refused"),
        (
            "data.test={validation}",
            "data.test {validation}: is also data.validation or data.train; name a file that holds",
        ),
        (
            "model.kind=nothing",
            "model.kind: give one of bnb, nat, inat, cmlm, elmer, encoder_ctc, bert2bert, transformer, seq2seq,"
            " classifier",
        ),
        ("model.depth=3", "unknown key 'model.depth'"),
        ("data.max_source_length=100", "data.max_source_length 100: the encoder has 64 positions; set it to 64"),
        ("loader.micro_batch_tokens=16", "a source can have 32 tokens; give at least 32"),
        ("ngram_size=2", "ngram_size: model.kind bnb has none for task sst2; remove ngram_size"),
        ("data.columns={{sentence: text}}", "has no column 'text', only sentence, label; give its name with"),
    ],
)
def test_faults_are_one_line_and_nothing_is_written(tmp_path, films, pretrained, fork_server, override, message):
    run = labels_run(tmp_path, "run", films, pretrained)
    codes, text = run.fork(fork_server, override.format(**films), ranks=1)
    assert codes == [2], text
    assert message.format(**films) in text
    assert "Traceback" not in text
    assert not run.output.exists()
    assert not list(tmp_path.glob("cache/*"))
