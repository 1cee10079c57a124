"""What the models return.

Shapes: B sequences; padded: L source columns, T slots of the longest decoder sequence; packed: N source tokens and
sum T slots of all sequences together; H hidden size, V vocabulary, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from transformers.modeling_outputs import ModelOutput

from bnb_ds.common.packing import PackedLayout


@dataclass
class BnbModelOutput(ModelOutput):
    """What `BnbModel` returns. Padded input gives [B, T, ...] and [B, L, ...], zero at padding; packed, one row.

    Attributes:
        last_hidden_state: of the decoder, [B, T, H] or [sum T, H].
        latent: of each source token, before dropout, [B, L, latent_size] or [N, latent_size].
        length_logits: with length classification, [B, C]: of ``length_difference_min`` and on.
        encoder_last_hidden_state: [B, L, H] or [N, H].
        decoder_lengths: int64 [B].
        decoder_layout: where the decoder's sequences lie in a packed row.
    """

    last_hidden_state: Tensor | None = None
    latent: Tensor | None = None
    length_logits: Tensor | None = None
    encoder_last_hidden_state: Tensor | None = None
    decoder_lengths: Tensor | None = None
    decoder_layout: PackedLayout | None = None


@dataclass
class BnbOutput(ModelOutput):
    """What `BnbForConditionalGeneration` returns.

    A sequence's own loss is the mean of its target tokens' nats, ``kl_weight`` times its mean KL(uniform || p), and
    with length classification ``length_loss_weight`` times the nats of its length.

    Attributes:
        loss: [], ``loss_sum / loss_count`` of this batch.
        loss_sum: float32 [] (float64 in a float64 model): the sequences' losses added up, each times its target tokens
            (``loss_reduction`` ``"token"``; infeasible sequences are left out) or once (``"sample"``).
        loss_count: int64 [], those target tokens, or the sequences of the batch.
        num_infeasible: int64 [], samples whose target does not fit their decoder slots.
        kl: [], mean KL(uniform || p) over all slots, without gradient; 0 where ``kl_weight`` is 0.
        length_loss: with length classification, [], mean nats of the target lengths, without gradient.
        logits: [B, T, V] (zero at padding) or packed [sum T, V]; None when there are labels, unless asked for.
        best: int64 [B, T] (zero at padding) or packed [sum T], the best token of each slot; None unless asked for.
        latent: of each source token, before dropout, [B, L, latent_size] or [N, latent_size].
        decoder_lengths: int64 [B].
        encoder_last_hidden_state: [B, L, H] or packed [N, H].
    """

    loss: Tensor | None = None
    loss_sum: Tensor | None = None
    loss_count: Tensor | None = None
    num_infeasible: Tensor | None = None
    kl: Tensor | None = None
    length_loss: Tensor | None = None
    logits: Tensor | None = None
    best: Tensor | None = None
    latent: Tensor | None = None
    decoder_lengths: Tensor | None = None
    encoder_last_hidden_state: Tensor | None = None


@dataclass
class BnbClassifierOutput(ModelOutput):
    """What `BnbForSequenceClassification` returns.

    Attributes:
        loss: [], mean over the batch: cross-entropy in nats, or squared error of a regression.
        loss_sum: float32 [], the same added up.
        loss_count: int64 [], B.
        logits: [B, C].
    """

    loss: Tensor | None = None
    loss_sum: Tensor | None = None
    loss_count: Tensor | None = None
    logits: Tensor | None = None
