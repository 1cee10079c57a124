"""One rank of `test_dag_zero`: a few steps of a model with links under DeepSpeed, its weights and losses written down.

Arguments: ZeRO stage, fp32 or bf16, output file.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from bnb_ds.common.packing import PackedLayout
from bnb_ds.dag.links import LinkNetwork
from bnb_ds.dag.loss import linear_dag_loss
from bnb_ds.distributed import ranks

STEPS, LEARNING_RATE, VOCAB, HIDDEN = 3, 0.5, 11, 8
# What each of two ranks reads: slots and targets; the third target of the first rank is too long and adds nothing.
LENGTHS = ([7, 5, 2], [6, 1, 8])
TARGETS = ([[1, 2, 2, 3], [4, 5], [6, 7, 8]], [[1, 9, 3], [10], [2, 4, 6, 8, 8]])


class LinkedModel(nn.Module):
    """Reads and writes through one matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, HIDDEN)
        self.layer = nn.Linear(HIDDEN, HIDDEN)
        self.links = LinkNetwork(HIDDEN, 2, 8, initializer_range=0.5)

    def forward(self, ids: Tensor, cu_seqlens: Tensor, labels: Tensor, label_lengths: Tensor) -> Tensor:
        layout = PackedLayout.from_cu_seqlens(cu_seqlens, num_tokens=len(ids), max_seqlen=int(cu_seqlens.diff().max()))
        hidden = self.layer(self.embedding(ids)).tanh()
        links = self.links(hidden, layout)
        weight = self.embedding.weight
        output = linear_dag_loss(
            hidden, weight, None, links, labels, None, label_lengths, reduction="sum", cu_seqlens=cu_seqlens
        )
        return output.loss


def model() -> LinkedModel:
    torch.manual_seed(0)
    return LinkedModel()


def batch(rank: int) -> dict[str, Tensor]:
    """Packed inputs of one rank."""
    lengths, targets = torch.tensor(LENGTHS[rank]), TARGETS[rank]
    return {
        "ids": torch.randint(0, VOCAB, (int(lengths.sum()),), generator=torch.Generator().manual_seed(rank)),
        "cu_seqlens": nn.functional.pad(lengths.cumsum(0), (1, 0)).int(),
        "labels": torch.tensor([token for target in targets for token in target]),
        "label_lengths": torch.tensor([len(target) for target in targets]),
    }


def main() -> None:
    import deepspeed

    stage, precision, output = int(sys.argv[-3]), sys.argv[-2], Path(sys.argv[-1])
    ranks.init()
    settings = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
        "zero_allow_untested_optimizer": True,
        "gradient_clipping": 0.0,  # else DeepSpeed clips at 1
        "bf16": {"enabled": precision == "bf16"},
    }
    linked = model()
    optimizer = torch.optim.SGD(linked.parameters(), lr=LEARNING_RATE)
    engine, *_ = deepspeed.initialize(model=linked, optimizer=optimizer, config=settings, dist_init_required=False)
    losses = []
    for _ in range(STEPS):
        loss = engine(**batch(ranks.rank())) / 10
        engine.backward(loss)
        engine.step()
        losses.append(ranks.all_sum(loss.detach().clone()).item() / 2)
    with deepspeed.zero.GatheredParameters(list(linked.parameters()), enabled=stage == 3):
        weights = {name: parameter.detach().float().clone() for name, parameter in linked.named_parameters()}
    if ranks.is_main():
        torch.save({"losses": losses, "weights": weights}, output)
    ranks.shutdown()


if __name__ == "__main__":
    main()
