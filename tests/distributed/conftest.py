"""An engine and its training loop in this process, which is the only rank."""

from __future__ import annotations

import json

import pytest
import torch

from bnb_ds.checkpoint.store import CheckpointWriter
from bnb_ds.config.deepspeed import load_ds_config
from bnb_ds.data.loader import StepLoader
from bnb_ds.distributed import ranks
from bnb_ds.modeling import BnbConfig, BnbForConditionalGeneration
from bnb_ds.shards.reader import TokenShards
from bnb_ds.train.engine import build_engine
from bnb_ds.train.loop import Intervals, TrainLoop
from bnb_ds.train.objectives import Reconstruction
from bnb_ds.train.phases import Phases
from bnb_ds.train.step import TrainStep
from bnb_ds.train.tracking import Tracker
from tests import launching
from tests.unit.data.test_samples import make_samples

BERT = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
OPTIMIZER = {"type": "AdamW", "params": {"lr": 1e-2, "weight_decay": 0.1}}


@pytest.fixture(scope="module")
def device():
    """This process as the only rank. DeepSpeed keeps its process group until the process ends."""
    with pytest.MonkeyPatch.context() as patch:
        for name in launching.LAUNCHER_VARIABLES:
            patch.setenv(name, "")  # the patch now knows the variable, and removes it at the end
            patch.delenv(name)
        patch.setenv("DS_ACCELERATOR", "cpu")
        yield ranks.init()


@pytest.fixture
def make_loop(device, small_shards, tmp_path):
    def make(objective=None, steps=4, spikes=None, **ds_changes) -> TrainLoop:
        ds_path = tmp_path / "ds.json"
        batch = {"train_batch_size": 8, "train_micro_batch_size_per_gpu": 4}
        ds_path.write_text(json.dumps({**batch, "optimizer": OPTIMIZER, **ds_changes}))
        ds_config = load_ds_config(ds_path, 1)
        shards = TokenShards(small_shards, "train")
        torch.manual_seed(0)
        bert = {**BERT, "vocab_size": shards.vocab_size}
        model = BnbForConditionalGeneration(BnbConfig(encoder=bert, decoder_positions="shared"))
        engine, _ = build_engine(model, ds_config, device, lambda step: 1.0)
        phases = Phases(device)
        loader = StepLoader(make_samples(shards), seed=0, micro_batch=4, accumulation_steps=2, rank=0, world_size=1)
        train_step = TrainStep(
            engine,
            objective or Reconstruction(),
            lambda batch: 1,
            device=device,
            seed=0,
            phases=phases,
            spikes=spikes,
            records=tmp_path,
        )
        return TrainLoop(
            engine=engine,
            loader=loader,
            train_step=train_step,
            evaluate=lambda step, check_in: {"eval/loss": 0.0},
            tracker=Tracker(tmp_path / "runs", start_step=0, total_steps=steps),
            writer=CheckpointWriter(engine, tmp_path / "checkpoints", keep=1),
            phases=phases,
            peak=None,
            intervals=Intervals(log_steps=1, eval_steps=steps, checkpoint_steps=steps),
            total_steps=steps,
            stop_step=steps,
            spikes=spikes,
        )

    return make
