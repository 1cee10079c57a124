"""An output that cannot be written is refused before any work; pictures and figures go through pipes and links."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from bnb_ds.bench import flags
from bnb_ds.bench.generation.report import draw
from bnb_ds.cli import main
from bnb_ds.loggers.plots import plot

EXISTS = "already exists; remove it or choose another output"
DIRECTORY = "is a directory: give the name of a file"
#: arguments with {d} for a directory that holds a file and {f} for a file; the work; the message
REFUSED = [
    ("export run {d}", "bnb_ds.export.from_run.locate_checkpoint", "{d}: " + EXISTS),
    ("export run {f}", "bnb_ds.export.from_run.locate_checkpoint", "{f}: " + EXISTS),
    ("export --format onnx model {d}", "bnb_ds.export.onnx.load_exported", "{d}: " + EXISTS),
    ("average run --last 2 --output {d}", "bnb_ds.export.from_run.find_checkpoints", "{d}: " + EXISTS),
    ("import-reference a {d}", "bnb_ds.modeling.BnbForConditionalGeneration.from_reference", "{d}: " + EXISTS),
    ("import-optimus a {d}", "bnb_ds.export.import_optimus.read_tensors", "{d}: " + EXISTS),
    ("curves run --png {d}", "bnb_ds.train.tracking.read_scalars", "--png {d}: " + DIRECTORY),
    ("curves run --png {f}", "bnb_ds.train.tracking.read_scalars", "{f}: " + EXISTS),
    ("prep stats shards --png {d}", "data_prep.tools.stats.corpus_stats", "--png {d}: " + DIRECTORY),
    ("prep docs --output {d}.jsonl", "data_prep.sources.docs.iterate_docs", "{d}.jsonl: " + EXISTS),
    ("prep vocab --input {f} --output {d}", "data_prep.tokenise.vocab.count_words", "{d}: " + EXISTS),
    ("predict model --input {f} --output {d}", "bnb_ds.evaluate.predict.best_model", "--output {d}: " + DIRECTORY),
    ("predict model --input {f} --output {f}", "bnb_ds.evaluate.predict.best_model", "{f}: is the same file as {f}"),
    ("predict model --input x --output {f}", "bnb_ds.evaluate.predict.best_model", "{f}: " + EXISTS),
    ("distill teacher --output {d}", "bnb_ds.finetune.distillation.best_model", "--output {d}: " + DIRECTORY),
    ("distill teacher --output {d}/no/o", "bnb_ds.finetune.distillation.best_model", "there is no directory {d}/no"),
    ("glue r --deepspeed_config d --output {f}", "bnb_ds.finetune.glue.load_recipe", "--output {f}: is no directory"),
    ("bench ctc --json {d}", "torch.set_num_threads", "--json {d}: " + DIRECTORY),
    (
        "bench generate --against all --data {f} --json {f}",
        "torch.set_num_threads",
        "--json {f}: is the same file as {f}",
    ),
    ("bench serve model --data {f} --json {f}", "bnb_ds.bench.serve.read_texts", "--json {f}: is the same file as {f}"),
    ("bench ctc --json {f}", "torch.set_num_threads", "{f}: already exists; add --overwrite to replace it, or choose"),
    ("bench loader --json {f}", "bnb_ds.bench.data_loader.measure", "{f}: already exists; add --overwrite to replace"),
    (
        "show-dag model --text a --output {f}",
        "bnb_ds.dag.strategies.DagOptions",
        "{f}: already exists; add --overwrite",
    ),
    ("bench loader --json {d}", "bnb_ds.bench.data_loader.measure", "--json {d}: " + DIRECTORY),
]


@pytest.mark.parametrize(("line", "work", "message"), REFUSED, ids=[line for line, _, _ in REFUSED])
def test_refused_before_the_work(line, work, message, tmp_path, monkeypatch, capsys):
    names = {"d": tmp_path / "d", "f": tmp_path / "f.txt"}
    for directory in (names["d"], tmp_path / "d.jsonl"):
        directory.mkdir()
        (directory / "mine").write_text("mine")
    names["f"].write_text("mine")
    monkeypatch.setattr(work, None)
    assert main(line.format(**names).split()) == 2
    said = capsys.readouterr().err
    assert message.format(**names) in said
    assert said.count("\n") == 1
    assert names["f"].read_text() == (names["d"] / "mine").read_text() == "mine"


def through_pipe(write, path: Path) -> bytes:
    """What a function writes into a named pipe."""
    os.mkfifo(path)
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.append(path.read_bytes()), daemon=True)
    reader.start()
    write(path)
    reader.join(10)
    return found[0]


WRITERS = {
    "curves": lambda path: plot({"run": {"a": [(0, 1.0), (1, 2.0)]}}, ["a"], path),
    "bench generate": lambda path: draw(path, {"a": {"b": 1.0}}, "title"),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=list(WRITERS))
def test_pictures_go_through_a_pipe_and_through_links(write, tmp_path):
    picture = through_pipe(write, tmp_path / "pipe.png")
    assert picture.startswith(b"\x89PNG")
    assert picture.endswith(b"IEND\xaeB`\x82")
    write(tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == picture


def test_figures_go_through_a_pipe_and_keep_a_link(tmp_path):
    (tmp_path / "link").symlink_to("target")
    for text in (through_pipe(lambda path: flags.write(path, {"a": 1}), tmp_path / "pipe"), None):
        if text is None:
            flags.write(tmp_path / "link", {"a": 1})
            text = (tmp_path / "target").read_bytes()
        assert json.loads(text) == {"a": 1}
    assert (tmp_path / "link").is_symlink()
