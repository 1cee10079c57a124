"""One rank of `test_ctc_zero`: train a tied model with DeepSpeed for a few steps, and save its weights and losses.

Arguments: ZeRO stage, frozen or trained embeddings, output file.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from bnb_ds.distributed import ranks
from tests.tiny import bnb_model, packed_form, source_ids

STEPS, LEARNING_RATE = 3, 0.5
# Source lengths of both ranks. The targets equal the sources. A target without enough slots adds nothing to the loss.
LENGTHS = ([7, 3, 9], [5, 11, 2])


def tied_model(freeze: bool) -> torch.nn.Module:
    model = bnb_model(dtype=torch.float32, decoder_length_ratio=1.5, decoder_length_max=13)
    model.model.decoder.embeddings.word_embeddings.requires_grad_(not freeze)
    return model


def batch(rank: int) -> dict:
    """Packed inputs of one rank. Some targets hold equal neighbours."""
    sources = source_ids(LENGTHS[rank], seed=rank)
    sources[0][1] = sources[0][2]
    return packed_form(sources, sources)


def main() -> None:
    import deepspeed

    stage, freeze, output = int(sys.argv[-3]), sys.argv[-2] == "frozen", Path(sys.argv[-1])
    ranks.init()
    model = tied_model(freeze)
    settings = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
        "zero_allow_untested_optimizer": True,
    }
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=LEARNING_RATE)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings, dist_init_required=False)
    losses = []
    for _ in range(STEPS):
        loss = engine(**batch(ranks.rank())).loss_sum / 100
        engine.backward(loss)
        engine.step()
        losses.append(ranks.all_sum(loss.detach().clone()).item() / 2)
    with deepspeed.zero.GatheredParameters(list(model.parameters()), enabled=stage == 3):
        weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    if ranks.is_main():
        torch.save({"losses": losses, "weights": weights}, output)
    ranks.shutdown()


if __name__ == "__main__":
    main()
