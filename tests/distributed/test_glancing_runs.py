"""Runs with glancing: the same losses at every ZeRO stage and number of ranks, and after a resume."""

from __future__ import annotations

import pytest

from bnb_ds.cli import main
from tests.jobs import Job

pytestmark = pytest.mark.slow

#: no dropout, because its random draws depend on the rank
QUIET = [
    "model.hidden_dropout=0",
    "model.attention_dropout=0",
    "model.decoder_tokens=true",
    "glancing.start=0.8",
    "glancing.end=0.4",
    "intervals.eval_steps=8",
    "intervals.log_steps=1",
]
TARGETS = {
    "ctc": ["model.target=ctc"],
    "token": ["model.decoder_length=predicted"],
    "dag, lengths, infilling, a head behind every layer": [
        "model.target=dag",
        "model.decoder_length=predicted",
        "model.deep_supervision=true",
        "mixed_training=0.3",
        "objective.corruption=infill",
    ],
}
ZERO_3 = {"stage": 3, "stage3_param_persistence_threshold": 0}


def steps(job: Job) -> list[tuple[int, int]]:
    return [(row["step"], row["sample_fingerprint"]) for row in job.metrics() if "train/loss" in row]


def losses(job: Job) -> list[float]:
    return [row["train/loss"] for row in job.metrics() if "train/loss" in row]


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_ranks_stages_and_a_resume_change_nothing(tmp_path, small_shards, fork_server, target):
    whole = Job(tmp_path / "whole", small_shards, zero_optimization={"stage": 0})
    whole.train_forked(fork_server, *QUIET, *target, ranks=1)
    assert len(losses(whole)) == 8
    parts = Job(tmp_path / "parts", small_shards, zero_optimization=ZERO_3)
    for ranks, stop in ((2, 3), (1, 6), (2, 8)):
        parts.train_forked(fork_server, *QUIET, *target, "--resume", "auto", "--stop-at", str(stop), ranks=ranks)
    assert steps(parts) == steps(whole)
    assert losses(parts) == pytest.approx(losses(whole), rel=2e-4)


def test_a_resume_with_dropout_is_exact(tmp_path, small_shards, fork_server):
    dropout = [flag for flag in QUIET if "dropout" not in flag]
    curves = []
    for name, stops in (("whole", (8,)), ("parts", (3, 8))):
        job = Job(tmp_path / name, small_shards)
        for stop in stops:
            job.train_forked(fork_server, *dropout, "model.target=dag", "--resume", "auto", "--stop-at", str(stop))
        curves.append(losses(job))
    assert curves[0] == curves[1]


def test_a_graph_is_exported_and_generates(tmp_path, small_shards, fork_server, capsys):
    job = Job(tmp_path / "run", small_shards)
    job.train_forked(fork_server, *QUIET, "model.target=dag")
    assert main(["export", str(job.output), str(tmp_path / "model")]) == 0
    (tmp_path / "in.txt").write_text("one line\nand another\n")
    files = ["--input", str(tmp_path / "in.txt"), "--output"]
    for strategy in ("greedy", "lookahead", "viterbi", "joint_viterbi", "beam"):
        out = tmp_path / f"{strategy}.txt"
        flags = ["--strategy", strategy, "--length-penalty", "0.5"]
        assert main(["generate", str(tmp_path / "model"), *files, str(out), *flags]) == 0
        assert out.read_text().count("\n") == 2
    capsys.readouterr()
    assert main(["generate", str(tmp_path / "model"), *files, str(tmp_path / "no.txt"), "--strategy", "guess"]) == 2
    message = capsys.readouterr().err
    assert "strategy is 'guess'" in message
    assert message.count("\n") == 1


def test_glancing_without_tokens_is_refused(tmp_path, small_shards, fork_server):
    job = Job(tmp_path / "run", small_shards)
    launch = job.fork(fork_server, "glancing.start=0.5", ranks=1)
    assert launch.wait() == [2]
    assert "glancing shows target tokens to the decoder: set model.decoder_tokens to true" in launch.text()
    assert "Traceback" not in launch.text()
