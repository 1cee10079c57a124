"""`runs/pretrain.py` whose rank 1 is slow: up to step 4 it waits for each batch, later it computes more slowly."""

from __future__ import annotations

import sys
import time

from bnb_ds.data.samples import PretrainSamples
from bnb_ds.distributed import ranks
from bnb_ds.pretrain import main as program
from bnb_ds.train.objectives import Reconstruction

_SECONDS = 0.3
_LAST_STEP_OF_SLOW_READING = 4
_batch, _loss_sum = PretrainSamples.batch, Reconstruction.loss_sum
_read = []


def batch(self, sample_ids, epochs):
    """Read samples, slowly at first. There are two batches in a step."""
    _read.append(sample_ids)
    if ranks.rank() == 1 and len(_read) <= 2 * _LAST_STEP_OF_SLOW_READING:
        time.sleep(_SECONDS)
    return _batch(self, sample_ids, epochs)


def loss_sum(self, model, packed, device, step):
    """Compute the loss, slowly at the end; steps are counted from 0 here or from 1 there."""
    if ranks.rank() == 1 and step > _LAST_STEP_OF_SLOW_READING:
        time.sleep(_SECONDS)
    return _loss_sum(self, model, packed, device, step)


if __name__ == "__main__":
    PretrainSamples.batch, Reconstruction.loss_sum = batch, loss_sum
    sys.exit(program.main())
