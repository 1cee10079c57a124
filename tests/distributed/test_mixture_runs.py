"""A run on two corpora, stopped and resumed, equals one without interruption; other weights are another run."""

from __future__ import annotations

import pytest
import torch

from tests.jobs import Job

pytestmark = pytest.mark.slow


def test_a_mixed_run_resumes_as_a_plain_one(tmp_path, small_shards, small_texts, small_tokenizer, fork_server):
    from data_prep.sources.documents import Document
    from tests.shard_building import build_shards

    other = tmp_path / "other"
    documents = (Document(str(i), f"also {text}", "") for i, text in enumerate(small_texts[:40]))
    build_shards(documents, other, small_tokenizer, sources=[], holdout=0.2)
    mixture = f"{{{small_shards}: 1, {other}: 3}}"
    whole = Job(tmp_path, mixture, "whole")
    text = whole.train_forked(fork_server)
    assert f"75.0% of the samples are of {other}" in text
    stopped = Job(tmp_path, mixture, "stopped")
    stopped.train_forked(fork_server, "--stop-at", "3")
    stopped.train_forked(fork_server, "--resume", "auto")
    assert stopped.scalars()["train/loss"] == whole.scalars()["train/loss"]
    assert all(torch.equal(value, whole.weights()[name]) for name, value in stopped.weights().items())
    launch = stopped.fork(fork_server, "--resume", "auto", f"data.shards={{{small_shards}: 1, {other}: 1}}")
    assert launch.wait() == [2, 2]
    assert "was started with different settings: data: '0.25 of " in launch.text()
