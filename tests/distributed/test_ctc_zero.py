"""The fused CTC head with DeepSpeed: at every ZeRO stage, two ranks train like one process with the plain loss."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from tests.distributed import zero_ctc

pytestmark = pytest.mark.slow


def plain_training(freeze: bool) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Train on the batches of both ranks in one process, with ``log_softmax`` and torch's ``ctc_loss``."""
    model = zero_ctc.tied_model(freeze)
    optimizer = torch.optim.SGD(model.parameters(), lr=zero_ctc.LEARNING_RATE)
    losses = []
    for _ in range(zero_ctc.STEPS):
        total = 0.0
        for rank in range(2):
            inputs = zero_ctc.batch(rank)
            labels, label_lengths = inputs.pop("labels"), inputs.pop("label_lengths")
            output = model(**inputs)
            rows = F.log_softmax(output.logits, -1).split(output.decoder_lengths.tolist())
            log_probs = torch.nn.utils.rnn.pad_sequence(list(rows))
            total += F.ctc_loss(
                log_probs, labels, output.decoder_lengths, label_lengths, reduction="sum", zero_infinity=True
            )
        (total / 200).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total.item() / 200)
    return losses, dict(model.named_parameters())


@pytest.mark.parametrize(("stage", "embeddings"), [(0, "tied"), (1, "tied"), (2, "tied"), (3, "tied"), (3, "frozen")])
def test_every_stage_equals_plain_training(tmp_path, fork_server, stage, embeddings):
    file = tmp_path / "rank0.pt"
    arguments = [str(stage), embeddings, str(file)]
    launch = fork_server.launch(arguments, tmp_path / "log", program="tests.distributed.zero_ctc")
    assert launch.wait() == [0, 0], launch.text()
    got = torch.load(file)
    losses, weights = plain_training(embeddings == "frozen")
    assert got["losses"] == pytest.approx(losses, rel=1e-5)
    assert losses[-1] < losses[0]
    for name, weight in weights.items():
        torch.testing.assert_close(got["weights"][name], weight.detach(), rtol=1e-4, atol=2e-6, msg=name)
