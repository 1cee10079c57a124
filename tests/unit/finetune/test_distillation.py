"""A distilled training set holds the teacher's outputs. Shares, interruptions and kills do not change it."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path

import pytest
import torch

from bnb_ds.baselines.settings import TransformerSection
from bnb_ds.cli import main
from bnb_ds.errors import ConfigError, DataError
from bnb_ds.finetune.distillation import DistillJob, distill
from bnb_ds.systems.baselines import Transformer
from bnb_ds.systems.model_dir import load_system
from bnb_ds.tasks.codec import Codec
from bnb_ds.tasks.data_section import TaskDataSection
from bnb_ds.tasks.examples import read_examples
from bnb_ds.tasks.registry import get_task
from bnb_ds.tasks.text_lengths import Lengths
from tests.tiny import bnb_model

NUM_EXAMPLES = 30


@pytest.fixture(scope="module")
def texts(small_texts, tmp_path_factory) -> tuple[Path, Path]:
    """Two parallel files."""
    folder = tmp_path_factory.mktemp("texts")
    lines = [" ".join(text.split()[:12]) for text in small_texts[:NUM_EXAMPLES]]
    (folder / "source.txt").write_text("".join(f"{line}\n" for line in lines))
    (folder / "target.txt").write_text("".join(f"{line[::-1]}\n" for line in lines))
    return folder / "source.txt", folder / "target.txt"


@pytest.fixture(scope="module")
def teacher(small_tokenizer, tmp_path_factory) -> Path:
    """An untrained teacher. Its weights are so large that different sources have different outputs."""
    size = {
        "hidden_size": 16,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "max_position_embeddings": 64,
    }
    section = TransformerSection(kind="transformer", size=size, num_beams=2)
    codec = Codec(small_tokenizer, small_tokenizer)
    system = Transformer(get_task("translation"), Lengths(48, 12), codec, section)
    torch.manual_seed(0)
    model = system.build()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8)
    directory = tmp_path_factory.mktemp("teacher")
    model.save_pretrained(directory)
    system.save_files(model.config, directory)
    return directory


def job(teacher: Path, texts: tuple[Path, Path], output: Path, **fields) -> DistillJob:
    return DistillJob(teacher, output, overrides=overrides(texts, output.parent), **{"window": 8, **fields})


def overrides(texts: tuple[Path, Path], folder: Path) -> list[str]:
    return [f"data.train={{source: {texts[0]}, target: {texts[1]}}}", f"data.cache_dir={folder / 'cache'}"]


@pytest.fixture(scope="module")
def whole(teacher, texts, tmp_path_factory) -> bytes:
    output = tmp_path_factory.mktemp("whole") / "train.jsonl"
    assert f"distill: {NUM_EXAMPLES} examples to {output}" in distill(job(teacher, texts, output))
    return output.read_bytes()


def test_targets_are_the_teachers_beam_search(whole, teacher, texts, tmp_path):
    rows = [json.loads(line) for line in whole.decode().splitlines()]
    sources = texts[0].read_text().splitlines()
    assert [row["source"] for row in rows] == sources
    system = load_system(teacher)
    model = system.load(teacher)
    encoded = system.codec.encode_sources([(source,) for source in sources], 48, cut="longest").tokens
    alone = [system.codec.decode(system.write(model, [tokens.tolist()], 2))[0] for tokens in encoded]
    expected = [text or row for text, row in zip(alone, texts[1].read_text().splitlines(), strict=True)]
    assert [row["target"] for row in rows] == expected
    assert len(set(expected)) > 3

    (tmp_path / "train.jsonl").write_bytes(whole)
    data = TaskDataSection(train=str(tmp_path / "train.jsonl"))
    examples = list(read_examples(get_task("translation"), data, "train"))
    assert [example.target for example in examples] == expected
    assert [(source,) for source in sources] == [example.sources for example in examples]


def test_shares_joined_are_the_whole(whole, teacher, texts, tmp_path):
    for index in range(3):
        distill(job(teacher, texts, tmp_path / "train.jsonl", task_index=index, num_tasks=3))
    parts = sorted(tmp_path.glob("train.jsonl.*-of-00003"))
    assert b"".join(part.read_bytes() for part in parts) == whole


def test_an_interrupted_run_goes_on_and_a_finished_one_stays(whole, teacher, texts, tmp_path, monkeypatch):
    from bnb_ds.finetune import distillation

    output = tmp_path / "train.jsonl"
    write, calls = distillation.ResumableOutput.write, []

    def failing(self, *arguments):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(arguments)
        write(self, *arguments)

    monkeypatch.setattr(distillation.ResumableOutput, "write", failing)
    with pytest.raises(KeyboardInterrupt):
        distill(job(teacher, texts, output))
    monkeypatch.undo()
    assert not output.exists()
    with pytest.raises(DataError, match="add --resume to go on"):
        distill(job(teacher, texts, output))
    with pytest.raises(ConfigError, match=r"a run with other settings \(num_beams\)"):
        distill(job(teacher, texts, output, resume=True, num_beams=3))
    distill(job(teacher, texts, output, resume=True))
    assert output.read_bytes() == whole
    assert "30 examples" in distill(job(teacher, texts, output, resume=True))
    with pytest.raises(DataError, match=r"train\.jsonl: already exists; add --overwrite to replace it, --resume to go"):
        distill(job(teacher, texts, output))
    distill(job(teacher, texts, output, overwrite=True))
    assert output.read_bytes() == whole


@pytest.mark.slow
def test_a_killed_run_goes_on(whole, teacher, texts, tmp_path, fork_server):
    output = tmp_path / "train.jsonl"
    settings = [part for override in overrides(texts, tmp_path) for part in ("--set", override)]
    command = ["distill", str(teacher), "--output", str(output), "--window", "1", *settings]
    process = fork_server.launch(command, tmp_path / "log", ranks=0, program="bnb-ds")
    process.wait_for((tmp_path / "train.jsonl.progress.json").exists)
    process.kill(0)
    assert process.wait() == [-signal.SIGKILL]
    assert not output.exists()
    code, said = fork_server.run("bnb-ds", [*command, "--resume"], tmp_path / "log")
    assert code == 0, said
    assert output.read_bytes() == whole


def test_what_cannot_teach_is_told(teacher, texts, tmp_path, small_tokenizer, capsys):
    with pytest.raises(ConfigError, match="--task-index 2: give 0 to 1"):
        distill(job(teacher, texts, tmp_path / "a", task_index=2, num_tasks=2))
    with pytest.raises(ConfigError, match="there is no directory"):
        distill(job(teacher, texts, tmp_path / "none" / "a"))
    bnb_model(dtype=torch.float32).save_pretrained(tmp_path / "bnb")
    small_tokenizer.save_pretrained(tmp_path / "bnb")
    made_for = {"kind": "bnb", "task": "translation", "lengths": {"source": 20, "target": 20}}
    (tmp_path / "bnb" / "task.json").write_text(json.dumps(made_for))
    assert main(["distill", str(tmp_path / "bnb"), "--output", str(tmp_path / "a")]) == 2
    assert "a model of kind bnb cannot be the teacher; give an autoregressive one" in capsys.readouterr().err


def test_rows_left_out_are_told(texts, teacher, tmp_path):
    rows = [{"source": line} for line in texts[0].read_text().splitlines()[:3]]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({**row, "target": "x" * i}) for i, row in enumerate(rows)))
    overrides = [f"data.train={path}", "data.skip_bad_rows=true", f"data.cache_dir={tmp_path}"]
    said = distill(DistillJob(teacher, tmp_path / "out.jsonl", overrides=overrides))
    assert said.startswith("distill: 2 examples to ")
    assert said.endswith("; 1 rows left out: empty target")


def test_a_pipe_is_written_through_and_a_link_stays(whole, teacher, texts, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.append((tmp_path / "pipe").read_bytes()), daemon=True)
    reader.start()
    distill(job(teacher, texts, tmp_path / "pipe"))
    reader.join(10)
    assert found == [whole]
    for fields, flag in (({"resume": True}, "--resume"), ({"num_tasks": 2}, "--num-tasks above 1")):
        with pytest.raises(ConfigError, match=f"{flag} needs an output that is a file: --output .*/pipe is a device"):
            distill(job(teacher, texts, tmp_path / "pipe", **fields))
    (tmp_path / "link").symlink_to("target")
    distill(job(teacher, texts, tmp_path / "link"))
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_bytes() == whole


def test_the_data_and_the_teacher_are_no_output(teacher, texts, monkeypatch, tmp_path):
    monkeypatch.setattr("bnb_ds.finetune.distillation.read_examples", None)
    for path in (texts[0], teacher / "config.json"):
        before = path.read_bytes()
        (tmp_path / "link").unlink(missing_ok=True)
        (tmp_path / "link").symlink_to(path)
        with pytest.raises(ConfigError, match=f"is the same file as {path}, which is read: choose another output"):
            distill(job(teacher, texts, tmp_path / "link"))
        assert path.read_bytes() == before


def test_data_that_change_end_a_resume(teacher, texts, monkeypatch, tmp_path):
    """At the same size, and behind what identifies a file quickly: the data are hashed as a whole."""
    from bnb_ds.common.line_outputs import ResumableOutput

    ours = tuple(tmp_path / path.name for path in texts)
    for path, copy in zip(texts, ours, strict=True):
        copy.write_bytes(path.read_bytes())
    with monkeypatch.context() as patch:
        patch.setattr(ResumableOutput, "finish", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            distill(job(teacher, ours, tmp_path / "o"))
    ours[0].write_bytes(ours[0].read_bytes()[:-2] + b"X\n")
    with pytest.raises(ConfigError, match=r"a run with other settings \(examples\)"):
        distill(job(teacher, ours, tmp_path / "o", resume=True))


def test_data_from_a_pipe_are_refused_not_waited_for(teacher, texts, tmp_path):
    os.mkfifo(tmp_path / "source.txt")
    with pytest.raises(DataError, match=r"source.txt: is no regular file, and is read several times; data.train names"):
        distill(job(teacher, (tmp_path / "source.txt", texts[1]), tmp_path / "o"))
