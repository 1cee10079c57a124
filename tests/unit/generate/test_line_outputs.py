"""Generation from and to what is no regular file, outputs that are refused, and inputs that change before a resume."""

from __future__ import annotations

import io
import json
import os
import shutil
import stat
import sys
import threading
from pathlib import Path

import pytest

from bnb_ds.generate.pipeline import BnbPipeline
from bnb_ds.generate.processes import join
from tests.exports import save_model
from tests.standard_streams import main, run_closed, run_full, run_to_file, run_unread

pytestmark = pytest.mark.slow

NUM_LINES = 40
HEAD = 1 << 16


@pytest.fixture(scope="module")
def exported(small_tokenizer, tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("exported") / "model", small_tokenizer)


@pytest.fixture(scope="module")
def lines(small_texts) -> list[str]:
    return [text[: 5 + 7 * (i % 23)] for i, text in enumerate(small_texts[:NUM_LINES])]


@pytest.fixture(scope="module")
def content(lines) -> bytes:
    return "".join(line + "\n" for line in lines).encode()


@pytest.fixture
def source(content, tmp_path):
    path = tmp_path / "in.txt"
    path.write_bytes(content)
    return path


@pytest.fixture(scope="module")
def whole(exported, content, tmp_path_factory) -> bytes:
    folder = tmp_path_factory.mktemp("whole")
    (folder / "in").write_bytes(content)
    assert generate(exported, folder / "in", folder / "o") == 0
    return (folder / "o").read_bytes()


def command(model, source, target, *arguments: str) -> list[str]:
    return ["generate", str(model), "--input", str(source), "--output", str(target), "--window", "7", *arguments]


def generate(*arguments) -> int:
    return main(command(*arguments))


def read_in_background(path) -> tuple[threading.Thread, list[bytes]]:
    found: list[bytes] = []
    thread = threading.Thread(target=lambda: found.append(path.read_bytes()), daemon=True)
    thread.start()
    return thread, found


def test_devices_pipes_and_links_are_written_through(exported, source, whole, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    thread, found = read_in_background(tmp_path / "pipe")
    assert generate(exported, source, tmp_path / "pipe") == 0
    thread.join(10)
    assert found == [whole]
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder/target")
    for arguments in ([], ["--overwrite"]):
        assert generate(exported, source, tmp_path / "link", *arguments) == 0
        assert os.readlink(tmp_path / "link") == "folder/target"
        assert (tmp_path / "folder" / "target").read_bytes() == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "in.txt", "link", "pipe"]
    assert sorted(os.listdir(tmp_path / "folder")) == ["target", "target.progress.json"]


def test_shares_are_joined_into_the_target_of_a_link(tmp_path):
    parts = [tmp_path / f"o.{index}" for index in range(2)]
    for part in parts:
        part.write_text(f"{part.name}\n")
    (tmp_path / "link").symlink_to("target")
    assert join(parts, tmp_path / "link") == 2
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "o.0\no.1\n"
    assert sorted(os.listdir(tmp_path)) == ["link", "target"]


def test_a_device_stays_a_device(exported, source, tmp_path):
    try:
        os.mknod(tmp_path / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        (tmp_path / "null").write_bytes(b"")
    except OSError as error:
        pytest.skip(f"cannot make a device here: {error}")
    assert generate(exported, source, tmp_path / "null") == 0
    assert stat.S_ISCHR(os.lstat(tmp_path / "null").st_mode)
    assert sorted(os.listdir(tmp_path)) == ["in.txt", "null"]


def test_dev_stdout_is_standard_output(exported, source, whole, tmp_path):
    assert run_to_file(command(exported, source, "/dev/stdout"), tmp_path / "o") == (0, whole)


def spellings(path):
    os.link(path, path.with_name("hard"))
    path.with_name("soft").symlink_to(path)
    return [
        path,
        path.parent / "." / ".." / path.parent.name / path.name,
        path.with_name("hard"),
        path.with_name("soft"),
    ]


def test_an_input_is_refused_as_output_before_the_model_is_loaded(
    exported, source, content, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(BnbPipeline, "from_pretrained", None)
    language_model = tmp_path / "lm.arpa"
    language_model.write_text("lm")
    for target in spellings(source):
        assert generate(exported, source, target) == 2
        said = capsys.readouterr().err
        assert said == (
            f"bnb-ds: error: --output {target}: is the same file as {source}, which is read: choose another output\n"
        )
    for target, arguments in (
        (exported / "model.safetensors", []),
        (language_model, ["--beam-size", "2", "--lm", str(language_model)]),
    ):
        assert generate(exported, source, target, *arguments) == 2
        assert f"is the same file as {target}, which is read" in capsys.readouterr().err
    for name in ("o.partial", "o.progress.json", "o.00001-of-00002", "o.00001-of-00002.partial"):
        (tmp_path / name).write_bytes(content)
        share = ["--num-tasks", "2", "--task-index", "1"] if "of" in name else []
        assert generate(exported, tmp_path / name, tmp_path / "o", *share) == 2
        assert f"is the same file as {tmp_path / name}, which is read" in capsys.readouterr().err
        assert (tmp_path / name).read_bytes() == content
    assert source.read_bytes() == content


def test_standard_streams_are_compared_too(exported, source, content, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(BnbPipeline, "from_pretrained", None)
    saved = os.dup(0)
    try:
        with open(source, "rb") as file:
            os.dup2(file.fileno(), 0)
            assert generate(exported, "-", source) == 2
    finally:
        os.dup2(saved, 0)
        os.close(saved)
    assert "is the same file as standard input, which is read" in capsys.readouterr().err
    with open(source, "ab") as file:
        saved = os.dup(1)
        os.dup2(file.fileno(), 1)
        try:
            assert generate(exported, source, "-") == 2
        finally:
            os.dup2(saved, 1)
            os.close(saved)
    assert f"--output standard output: is the same file as {source}, which is read" in capsys.readouterr().err
    assert source.read_bytes() == content


@pytest.mark.parametrize("extra", [[], ["--processes", "2"]], ids=["one process", "two processes"])
def test_a_directory_is_refused_before_the_work(exported, source, tmp_path, monkeypatch, capsys, extra):
    monkeypatch.setattr(BnbPipeline, "from_pretrained", None)
    monkeypatch.setattr("subprocess.Popen", None)
    (tmp_path / "d").mkdir()
    assert generate(exported, source, tmp_path / "d", *extra) == 2
    assert f"--output {tmp_path / 'd'}: is a directory: give the name of a file" in capsys.readouterr().err


def test_input_that_cannot_seek(exported, content, whole, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in (tmp_path / "pipe", None):
        reading, writing = os.pipe()
        target = tmp_path / "pipe" if name else f"/dev/fd/{writing}"
        writer = threading.Thread(target=Path(target).write_bytes, args=(content,), daemon=True)
        writer.start()
        if name is None:
            writer.join(10)  # a short text fits into the pipe
            os.close(writing)
        assert generate(exported, name or f"/dev/fd/{reading}", tmp_path / "o", "--overwrite") == 0
        assert (tmp_path / "o").read_bytes() == whole


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--resume"], "--resume needs seekable files: "),
        (["--num-tasks", "2"], "--num-tasks above 1 divides a file: "),
        (["--processes", "2"], "--processes above 1 divides a file: "),
    ],
)
@pytest.mark.parametrize("end", ["input", "output"])
def test_a_stream_is_neither_resumed_nor_shared(exported, source, tmp_path, capsys, flags, message, end):
    os.mkfifo(tmp_path / "pipe")
    source, target = (tmp_path / "pipe", tmp_path / "o") if end == "input" else (source, tmp_path / "pipe")
    assert generate(exported, source, target, *flags) == 2
    way_out = f"give file names for --input and --output, not {tmp_path / 'pipe'}\n"
    assert capsys.readouterr().err == f"bnb-ds: error: {message}{way_out}"


def test_closed_and_unreadable_input(exported, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", None)
    assert generate(exported, "-", tmp_path / "o") == 2
    assert "--input -: standard input is closed; give a text file, or redirect one" in capsys.readouterr().err

    class Broken(io.BytesIO):
        def readline(self, size):
            raise OSError(5, "Input/output error")

    monkeypatch.setattr("bnb_ds.generate.lines.open_input", lambda name: Broken())
    assert generate(exported, "-", tmp_path / "o") == 2
    assert "--input -: cannot be read (Input/output error); give a text file or -" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


def test_an_input_that_is_read_once_is_not_offered_to_resume(exported, source, tmp_path, monkeypatch, capsys):
    stopped_after(2, exported, "-", tmp_path / "o", monkeypatch, content=source.read_bytes())
    capsys.readouterr()
    assert generate(exported, source, tmp_path / "o") == 2
    said = capsys.readouterr().err
    assert (
        "o.partial: an earlier run left this unfinished: keep what you need, and add --overwrite to begin again" in said
    )


@pytest.mark.parametrize("name", ["-", "/dev/stdout"])
def test_standard_output_that_fails(exported, source, whole, tmp_path, capsys, name):
    arguments = command(exported, source, name)
    assert run_to_file(arguments, tmp_path / "o") == (0, whole)
    capsys.readouterr()
    assert run_full(arguments) == 2
    said = capsys.readouterr().err
    assert "cannot write: No space left on device" in said
    assert said.count("\n") == 1


def test_a_closed_standard_output_is_found_before_the_work(exported, source, monkeypatch, capsys):
    monkeypatch.setattr(BnbPipeline, "from_pretrained", None)
    assert run_closed(command(exported, source, "-")) == 2
    assert capsys.readouterr().err == (
        "bnb-ds: error: standard output: cannot write: it is closed; redirect it to a file or to /dev/null\n"
    )


@pytest.mark.parametrize("name", ["-", "/dev/stdout"])
def test_a_reader_that_goes_is_no_error_message(exported, source, capsys, name):
    assert run_unread(command(exported, source, name)) == 1
    assert capsys.readouterr().err == ""


def stopped_after(windows: int, exported, source, target, monkeypatch, *arguments: str, content: bytes = b"") -> None:
    """Ctrl-C after this number of windows."""
    plain, calls = BnbPipeline.generate, []

    def interrupted(self, texts, **options):
        calls.append(texts)
        if len(calls) > windows:
            raise KeyboardInterrupt
        return plain(self, texts, **options)

    with monkeypatch.context() as patch:
        patch.setattr(BnbPipeline, "generate", interrupted)
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        assert generate(exported, source, target, *arguments) == 130


def test_ctrl_c_is_one_line_and_loses_nothing(exported, source, whole, tmp_path, monkeypatch, capsys):
    stopped_after(3, exported, source, tmp_path / "o", monkeypatch)
    assert capsys.readouterr().err == "bnb-ds: interrupted; repeat the command with --resume to continue\n"
    assert (tmp_path / "o.partial").read_bytes() == b"".join(whole.splitlines(keepends=True)[:21])
    assert generate(exported, source, tmp_path / "o", "--resume") == 0
    assert (tmp_path / "o").read_bytes() == whole


def long_input(lines: list[str]) -> bytes:
    """Lines whose first is longer than what identifies a file by its beginning."""
    return "".join(line + "\n" for line in ["word " * (HEAD // 4), *lines]).encode()


@pytest.mark.parametrize("task", [[], ["--num-tasks", "2", "--task-index", "1"]], ids=["whole", "share"])
def test_an_input_that_has_changed_where_it_was_read_is_refused(exported, lines, tmp_path, monkeypatch, capsys, task):
    """The size is the same, and so are the first 64 KiB."""
    source, target = tmp_path / "in", tmp_path / "o"
    before = long_input(lines)
    partial = tmp_path / ("o.00001-of-00002.partial" if task else "o.partial")
    source.write_bytes(before)
    stopped_after(2, exported, source, target, monkeypatch, *task)
    done = partial.read_bytes()
    place = before.index(lines[3].encode())
    source.write_bytes(before[:place] + b"X" + before[place + 1 :])
    capsys.readouterr()
    assert generate(exported, source, target, *task, "--resume") == 2
    assert capsys.readouterr().err == (
        f"bnb-ds: error: --resume: the input has changed since {partial} was written: restore it, or remove that file"
        f" and {partial.name.removesuffix('.partial')}.progress.json and start again\n"
    )
    assert partial.read_bytes() == done
    source.write_bytes(before)
    assert generate(exported, source, target, *task, "--resume") == 0
    source.write_bytes(before[:place] + b"X" + before[place + 1 :])
    assert generate(exported, source, target, *task, "--resume") == 2  # the output is finished, but of another input
    assert "--resume: the input has changed" in capsys.readouterr().err


def test_an_input_that_has_changed_where_it_was_not_read_gives_what_it_says_now(exported, lines, tmp_path, monkeypatch):
    before = long_input(lines)
    (tmp_path / "in").write_bytes(before)
    stopped_after(2, exported, tmp_path / "in", tmp_path / "o", monkeypatch)
    place = before.rindex(lines[-1].encode())
    (tmp_path / "in").write_bytes(before[:place] + b"X" + before[place + 1 :])
    assert generate(exported, tmp_path / "in", tmp_path / "o", "--resume") == 0
    assert generate(exported, tmp_path / "in", tmp_path / "anew") == 0
    assert (tmp_path / "o").read_bytes() == (tmp_path / "anew").read_bytes()


def test_a_run_of_an_earlier_version_goes_on(exported, source, whole, tmp_path, monkeypatch):
    stopped_after(3, exported, source, tmp_path / "o", monkeypatch)
    state = json.loads((tmp_path / "o.progress.json").read_text())
    assert len(state.pop("input_digest")) == 64
    assert "model.safetensors" in state["settings"].pop("content")
    (tmp_path / "o.progress.json").write_text(json.dumps(state))
    assert generate(exported, source, tmp_path / "o", "--resume") == 0
    assert (tmp_path / "o").read_bytes() == whole


def test_another_model_of_the_same_size_and_ends_is_noticed(exported, source, tmp_path, monkeypatch, capsys):
    model = tmp_path / "model"
    shutil.copytree(exported, model)
    monkeypatch.setattr("bnb_ds.generate.open_model._HASHED_BYTES", 100)  # a large model has a middle
    stopped_after(2, model, source, tmp_path / "o", monkeypatch)
    weights = bytearray((model / "model.safetensors").read_bytes())
    weights[len(weights) // 2 + 3] ^= 1
    (model / "model.safetensors").write_bytes(weights)
    assert generate(model, source, tmp_path / "o", "--resume") == 2
    assert "o.progress.json is of a run with other settings (content): give the same" in capsys.readouterr().err
