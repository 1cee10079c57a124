"""A graph of slots under DeepSpeed: two ranks of any ZeRO stage train as one process with plain loops does."""

from __future__ import annotations

import pytest
import torch

from bnb_ds.common.packing import PackedLayout
from tests.distributed import zero_dag
from tests.plain_dag import plain_linear_dag

pytestmark = pytest.mark.slow


def plain_training() -> tuple[list[float], dict[str, torch.Tensor]]:
    """Both ranks' batches in one process, by log-probabilities of all tokens, plain loops and autograd."""
    model = zero_dag.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=zero_dag.LEARNING_RATE)
    losses = []
    for _ in range(zero_dag.STEPS):
        total = 0.0
        for rank in range(2):
            inputs, lengths = zero_dag.batch(rank), zero_dag.LENGTHS[rank]
            hidden = model.layer(model.embedding(inputs["ids"])).tanh()
            layout = PackedLayout.from_cu_seqlens(inputs["cu_seqlens"], num_tokens=len(hidden), max_seqlen=max(lengths))
            links = [one[:n, :n] for one, n in zip(model.links(hidden, layout), lengths, strict=True)]
            rows, targets = list(hidden.split(lengths)), zero_dag.TARGETS[rank]
            total = total + plain_linear_dag(rows, model.embedding.weight, None, links, targets, reduction="sum")
        (total / 20).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total.item() / 20)
    return losses, dict(model.named_parameters())


@pytest.mark.parametrize(("stage", "precision"), [(0, "fp32"), (2, "fp32"), (3, "fp32"), (3, "bf16")])
def test_every_stage_equals_plain_training(tmp_path, fork_server, stage, precision):
    file = tmp_path / "rank0.pt"
    arguments = [str(stage), precision, str(file)]
    launch = fork_server.launch(arguments, tmp_path / "log", program="tests.distributed.zero_dag")
    assert launch.wait() == [0, 0], launch.text()
    got = torch.load(file)
    losses, weights = plain_training()
    is_exact = precision == "fp32"
    assert got["losses"] == pytest.approx(losses, rel=1e-5 if is_exact else 0.05)
    assert losses[-1] < losses[0]
    for name, weight in weights.items():
        tolerance = {"rtol": 1e-4, "atol": 2e-6} if is_exact else {"rtol": 0.05, "atol": 0.05}
        torch.testing.assert_close(got["weights"][name], weight.detach(), **tolerance, msg=name)
