"""``bnb-ds generate`` killed at any moment, as a process of its own, and gone on with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.exports import save_model

pytestmark = pytest.mark.slow

NUM_LINES = 6000


@pytest.fixture(scope="module")
def exported(small_tokenizer, tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("killed") / "model", small_tokenizer)


@pytest.fixture(scope="module")
def source(small_texts, tmp_path_factory):
    path = tmp_path_factory.mktemp("lines") / "in.txt"
    texts = [small_texts[i % len(small_texts)][i % 50 :][: 20 + i % 90] for i in range(NUM_LINES)]
    path.write_text("".join(text + "\n" for text in texts))
    return path


def start(exported, source, target, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "bnb_ds.cli", "generate", str(exported), "--input", str(source)]
    command += ["--output", str(target), "--window", "100", "--device", "cpu", *arguments]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def done_lines(target) -> int:
    try:
        return json.loads(target.with_name(f"{target.name}.progress.json").read_text())["counts"]["lines"]
    except FileNotFoundError:
        return 0


def test_killed_twice_and_resumed_is_the_output_of_one_run(exported, source, tmp_path):
    target = tmp_path / "o"
    for until in (NUM_LINES // 5, NUM_LINES // 2):
        process = start(exported, source, target, "--resume")
        while done_lines(target) < until:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        process.stderr.close()
        assert not target.exists()
    last = start(exported, source, target, "--resume")
    assert last.wait() == 0, last.stderr.read()
    assert f"generate: {NUM_LINES} lines" in last.stderr.read()
    whole = start(exported, source, tmp_path / "whole", "--processes", "2")
    assert whole.wait() == 0, whole.stderr.read()
    assert target.read_bytes() == (tmp_path / "whole").read_bytes()
    assert len(set(target.read_text().splitlines())) > NUM_LINES // 20
    assert {path.name for path in tmp_path.iterdir()} == {"o", "o.progress.json", "whole"}


def test_a_share_that_fails_is_named(exported, tmp_path):
    process = start(exported, tmp_path / "none", tmp_path / "o", "--processes", "2")
    said = process.communicate()[1]
    assert process.returncode == 2
    assert "--processes 2: number 0 failed; mend that and add --resume to go on" in said
