"""``bnb-ds generate`` can be killed at any moment and resumed."""

from __future__ import annotations

import fcntl
import itertools
import json
import signal

import pytest

from tests.exports import save_model
from tests.fork_server import Launch

pytestmark = pytest.mark.slow

NUM_LINES = 3000


@pytest.fixture(scope="module")
def exported(small_tokenizer, tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("killed") / "model", small_tokenizer)


@pytest.fixture(scope="module")
def source(small_texts, tmp_path_factory):
    path = tmp_path_factory.mktemp("lines") / "in.txt"
    texts = [small_texts[i % len(small_texts)][i % 50 :][: 20 + i % 90] for i in range(NUM_LINES)]
    path.write_text("".join(text + "\n" for text in texts))
    return path


@pytest.fixture
def start(exported, source, fork_server, tmp_path):
    """Start the command in a separate process. It starts its shares, if any, as it does for a user."""
    numbers = itertools.count()

    def start(target, *arguments: str, source=source) -> Launch:
        command = ["generate", str(exported), "--input", str(source), "--output", str(target), "--window", "50"]
        log = tmp_path.with_name(f"{tmp_path.name}.{next(numbers)}.log")
        return fork_server.launch([*command, "--device", "cpu", *arguments], log, ranks=0, program="bnb-ds")

    return start


def done_lines(target) -> int:
    try:
        return json.loads(target.with_name(f"{target.name}.progress.json").read_text())["counts"]["lines"]
    except FileNotFoundError:
        return 0


def test_killed_twice_and_resumed_is_the_output_of_one_run(start, tmp_path):
    target = tmp_path / "o"
    for until in (NUM_LINES // 5, NUM_LINES // 2):
        killed = start(target, "--resume")
        killed.wait_for(lambda until=until: done_lines(target) >= until)
        killed.kill(0)
        assert killed.wait() == [-signal.SIGKILL], killed.text()
        assert not target.exists()
    last = start(target, "--resume")
    assert last.wait() == [0], last.text()
    assert f"generate: {NUM_LINES} lines" in last.text()
    whole = start(tmp_path / "whole", "--processes", "2")
    assert whole.wait() == [0], whole.text()
    assert target.read_bytes() == (tmp_path / "whole").read_bytes()
    assert len(set(target.read_text().splitlines())) > NUM_LINES // 20
    assert {path.name for path in tmp_path.iterdir()} == {"o", "o.progress.json", "whole"}


def test_a_share_that_fails_is_named(start, tmp_path):
    failed = start(tmp_path / "o", "--processes", "2", source=tmp_path / "none")
    assert failed.wait() == [2]
    assert "--processes 2: process 0 failed; correct its error above, then add --resume" in failed.text()


def is_locked(path) -> bool:
    try:
        with open(path, "ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def test_shares_end_with_the_process_that_started_them(start, tmp_path):
    shares = [tmp_path / f"o.{index:05d}-of-00002" for index in range(2)]
    partial = [path.with_name(f"{path.name}.partial") for path in shares]
    parent = start(tmp_path / "o", "--processes", "2")
    parent.wait_for(lambda: all(map(done_lines, shares)))
    assert all(map(is_locked, partial))
    parent.kill(0, signal.SIGTERM)
    assert parent.wait() == [128 + signal.SIGTERM], parent.text()
    assert not any(map(is_locked, partial))
    assert parent.text().splitlines()[-1] == "bnb-ds: ended by SIGTERM"
    assert "Traceback" not in parent.text()
