"""The outputs of the models.

Shapes: B sequences; padded: L source columns, T slots of the longest decoder sequence; packed: N source tokens and
sum T slots of all sequences together; H hidden size, V vocabulary, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers.modeling_outputs import ModelOutput

from bnb_ds.common.packing import PackedLayout

#: transformers wants a default for every field of an output. Fields with this default are always given.
FILLED: Any = None


@dataclass
class BnbModelOutput(ModelOutput):
    """The output of `bnb_ds.model.network.BnbModel`.

    For padded input, tensors are [B, T, ...] and [B, L, ...], with zeros at padding. For packed input they are one row.

    Attributes:
        last_hidden_state: [B, T, H] or [sum T, H], of the decoder.
        latent: [B, L, latent_size] or [N, latent_size], of each source token, before dropout.
        length_logits: [B, C] with length classification; the first class is ``length_difference_min``.
        encoder_last_hidden_state: [B, L, H] or [N, H].
        decoder_lengths: int64 [B], slots of each sequence.
        decoder_layout: layout of the slots in a packed row.
    """

    last_hidden_state: Tensor = FILLED
    latent: Tensor = FILLED
    length_logits: Tensor | None = None
    encoder_last_hidden_state: Tensor = FILLED
    decoder_lengths: Tensor = FILLED
    decoder_layout: PackedLayout = FILLED


@dataclass
class BnbOutput(ModelOutput):
    """The output of `bnb_ds.modeling.BnbForConditionalGeneration`.

    The loss of one sequence is a sum: the mean nats of its target tokens, ``kl_weight`` times its mean
    KL(uniform || p), and with length classification ``length_loss_weight`` times the nats of its length.

    Attributes:
        loss: [], ``loss_sum / loss_count`` of this batch.
        loss_sum: float32 [] (float64 in a float64 model), sum of the sequences' losses. With ``loss_reduction``
            ``"token"``, each is multiplied by its number of target tokens, and infeasible sequences are left out.
        loss_count: int64 [], the number of these target tokens; with ``"sample"``, the number of sequences.
        num_infeasible: int64 [], sequences whose target does not fit into their decoder slots.
        kl: [], mean KL(uniform || p) over all slots, without gradient; 0 if ``kl_weight`` is 0.
        length_loss: [] with length classification, mean nats of the target lengths, without gradient.
        logits: [B, T, V] with zeros at padding, or packed [sum T, V]; with labels only if asked for.
        best: int64 [B, T] with zeros at padding, or packed [sum T]; only if asked for. With CTC and with one token for
            each slot: the best token of each slot. With a graph: the tokens that the look-ahead path writes, in order,
            then -1 in the rest of the sequence's slots. `bnb_ds.decoding.decode.greedy_rows` reads outputs off it.
        latent: [B, L, latent_size] or [N, latent_size], of each source token, before dropout.
        decoder_lengths: int64 [B], slots of each sequence.
        encoder_last_hidden_state: [B, L, H] or packed [N, H].
        decoded: what the caller's ``decode`` returned; only with it, and then alone.
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
    decoded: Any = None


@dataclass
class BnbClassifierOutput(ModelOutput):
    """The output of `bnb_ds.model.classification.BnbForSequenceClassification`.

    Attributes:
        loss: [], mean over the batch of the cross-entropy in nats, or of the squared error for regression.
        loss_sum: float32 [], sum over the batch of the same.
        loss_count: int64 [], B.
        logits: [B, C].
    """

    loss: Tensor | None = None
    loss_sum: Tensor | None = None
    loss_count: Tensor | None = None
    logits: Tensor | None = None
