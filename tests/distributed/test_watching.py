"""Other output of a run: texts, histograms, a trace, and the skipped steps of fp16."""

from __future__ import annotations

import gzip
import json
import re

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bnb_ds.data.batch import PackedBatch
from bnb_ds.pretrain.evaluation import shown_reconstructions
from tests.jobs import Job

pytestmark = pytest.mark.slow


def test_texts_histograms_and_a_trace(tmp_path, small_shards, fork_server):
    job = Job(tmp_path, small_shards, zero_optimization={"stage": 3, "stage3_param_persistence_threshold": 0})
    settings = ["steps=4", "intervals.eval_steps=2", "intervals.histogram_steps=4", "intervals.reconstructions=2"]
    settings += ["objective.mask_probability=0.5"]
    job.train_forked(fork_server, *settings, "--profile-steps", "2:3")
    events = EventAccumulator(str(job.output / "runs"), size_guidance={"tensors": 0, "histograms": 0})
    events.Reload()
    texts = events.Tensors("eval/reconstructions/text_summary")
    assert [text.step for text in texts] == [2, 4]
    shown = "".join(text.tensor_proto.string_val[0].decode() for text in texts)
    assert "[CLS]" not in shown
    assert "[SEP]" not in shown
    lines = texts[0].tensor_proto.string_val[0].decode().splitlines()
    assert [line.split()[1] for line in lines if line.startswith("- ")] == [
        "**source:**",
        "**output:**",
        "**target:**",
    ] * 2
    assert lines[0].count("[MASK]") >= 1
    histograms = events.Tags()["histograms"]
    assert len(histograms) > 20
    assert {"weights_model.encoder.layer.0", "weights_model.decoder.layer.1", "weights_model.encoder.embeddings"} <= {
        tag.partition("/")[0] for tag in histograms
    }
    word_embeddings = next(tag for tag in histograms if "word_embeddings" in tag)
    (histogram,) = events.Histograms(word_embeddings)
    assert histogram.step == 4
    assert histogram.histogram_value.num > 32 * 100, "a rank's piece instead of the whole"
    (trace,) = (job.output / "profile").iterdir()
    assert trace.name == "steps_2_3.json.gz"
    assert "traceEvents" in json.loads(gzip.decompress(trace.read_bytes()))


def test_a_slow_rank_is_named_with_what_it_is_slow_at(tmp_path, small_shards, fork_server):
    job = Job(tmp_path, small_shards)
    settings = [
        "stragglers.check_steps=4",
        "stragglers.factor=3",
        "intervals.eval_steps=100",
        "intervals.checkpoint_steps=100",
    ]
    arguments = job.arguments(*settings)
    launch = fork_server.launch(arguments, tmp_path / "log", program="tests.distributed.slow_rank")
    assert launch.wait() == [0, 0], launch.text()
    named = re.findall(r"slow rank    step (\d): rank (\d) on \S+ takes (\S+) s a step for (\w+), the", launch.text())
    assert [(step, rank, phase) for step, rank, _, phase in named] == [("4", "1", "data"), ("8", "1", "forward")]
    assert all(float(seconds) > 0 for _, _, seconds, _ in named)


def test_fp16_overflows_are_counted_and_shown(tmp_path, small_shards, fork_server):
    """With the first loss scale, every gradient overflows. The scale is halved until one does not."""
    fp16 = {"enabled": True, "initial_scale_power": 32, "hysteresis": 1}
    job = Job(tmp_path, small_shards, zero_optimization={"stage": 2}, fp16=fp16)
    text = job.train_forked(fork_server, "steps=6", "intervals.eval_steps=100", TEST_FP16_ON_CPU="1")
    rows = [row for row in job.metrics() if "train/loss" in row]
    skipped = [row["train/skipped_overflows"] for row in rows]
    assert skipped[0] == 1
    assert skipped == sorted(skipped)
    assert rows[0]["train/loss_scale"] == 2**31
    assert re.search(r"step 6  loss .* tokens/s  ETA 0:00:00  skipped_overflows \d", text)


def test_a_list_survives_its_texts(small_shards, small_tokenizer):
    import numpy as np

    from bnb_ds.shards.reader import TokenShards
    from tests.unit.data.test_samples import make_samples

    batch: PackedBatch = make_samples(TokenShards(small_shards, "train")).batch(np.arange(3), np.zeros(3, int))
    star = small_tokenizer.encode("*", add_special_tokens=False)
    shown = shown_reconstructions(batch, [star, star], small_tokenizer)
    samples = shown.split("\n\n---\n\n")
    assert [len(sample.splitlines()) for sample in samples] == [3, 3]
    assert all(sample.splitlines()[1] in ("- **output:** \\*", "- **output:** [UNK]") for sample in samples)
