"""What TensorBoard shows of a run, read with its own readers."""

from __future__ import annotations

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from bnb_ds.loggers.logger import RunInfo
from bnb_ds.train.tracking import Tracker, histogram_tag, read_scalars


def events_of(runs) -> EventAccumulator:
    events = EventAccumulator(str(runs), size_guidance={"tensors": 0, "scalars": 0})
    events.Reload()
    return events


def test_settings_stand_beside_the_last_scores(tmp_path):
    settings = {"seed": 42, "model.encoder": "bert", "optimizer.params.lr": 1e-4}
    chosen = frozenset({"model.encoder", "optimizer.params.lr"})
    run = RunInfo(tmp_path, "run", settings=settings, chosen=chosen)
    tracker = Tracker(tmp_path / "runs", start_step=0, total_steps=2, run=run)
    for step in (1, 2):
        tracker.evaluation(step, {"eval/loss": 3.0 - step, "eval/bleu": 10.0 * step})
    tracker.close()
    events = events_of(tmp_path / "runs")
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    settings = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    assert set(settings) == chosen
    assert settings["optimizer.params.lr"].number_value == 1e-4
    assert settings["model.encoder"].string_value == "bert"
    content = events.SummaryMetadata("_hparams_/experiment").plugin_data.content
    metrics = plugin_data_pb2.HParamsPluginData.FromString(content).experiment.metric_infos
    assert {metric.name.tag for metric in metrics} == {"eval/loss", "eval/bleu"}
    assert {tag: values[-1] for tag, values in read_scalars(tmp_path / "runs").items()} == {
        "eval/loss": (2, 1.0),
        "eval/bleu": (2, 20.0),
    }
    assert "_hparams_/session_end_info" in events.summary_metadata


def test_constants_are_left_out(tmp_path):
    tracker = Tracker(tmp_path / "runs", start_step=0, total_steps=3)
    for step in (1, 2, 3):
        tracker.scalars(step, {"train/loss": 4.0, "train/skipped_spikes": 0, "train/spike_returns": step // 3})
        tracker.evaluation(step, {"eval/loss": 2.0, "eval/loss_samples": 100})
    tracker.close()
    assert read_scalars(tmp_path / "runs") == {
        "train/loss": [(1, 4.0), (2, 4.0), (3, 4.0)],
        "train/spike_returns": [(3, 1.0)],
        "eval/loss": [(1, 2.0), (2, 2.0), (3, 2.0)],
    }


def test_a_run_that_goes_back_forgets_what_came_after(tmp_path):
    tracker = Tracker(tmp_path / "runs", start_step=0, total_steps=3)
    for step in (1, 2, 3):
        tracker.scalars(step, {"train/loss": 1.0 * step})
    tracker.histogram(3, "weights_a/b", torch.ones(2, 3))
    tracker.go_back(1)
    tracker.scalars(2, {"train/loss": 20.0})
    tracker.close()
    assert read_scalars(tmp_path / "runs") == {"train/loss": [(1, 1.0), (2, 20.0)]}
    seconds = [path.name.split(".")[3] for path in (tmp_path / "runs").iterdir()]
    assert len(set(seconds)) == len(seconds) == 2, "TensorBoard reads files of one second in any order"


@pytest.mark.parametrize(
    ("parameter", "tag"),
    [
        ("encoder.layer.11.output.dense.weight", "weights_encoder.layer.11/output.dense.weight"),
        ("encoder.embeddings.word_embeddings.weight", "weights_encoder.embeddings/word_embeddings.weight"),
        ("latent.weight", "weights_latent/weight"),
        ("scale", "weights/scale"),
    ],
)
def test_histograms_are_grouped_by_layer(parameter, tag):
    assert histogram_tag(parameter) == tag
