"""From a trained model to text ids: greedy CTC decoding, or one token a slot with a beam of lengths.

Shapes: B sequences, L source columns, T decoder slots of the longest sequence (in packed form: of all), H hidden size,
K candidate lengths of a source.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bnb_ds.configuration import BnbConfig
from bnb_ds.ctc import collapse, linear_argmax, linear_best
from bnb_ds.errors import ConfigError
from bnb_ds.packing import PackedInputs, PackedLayout
from bnb_ds.slots import open_slots

if TYPE_CHECKING:
    from bnb_ds.modeling import BnbForConditionalGeneration, Encoded


@torch.inference_mode()
def generate(
    model: BnbForConditionalGeneration,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    token_type_ids: Tensor | None = None,
    *,
    length_beam: int = 1,
) -> Tensor:
    """Decode all positions at once.

    With CTC: the best token of each slot, repeats merged, then blanks dropped. With length classification: the best
    token of each slot of the predicted length; a beam decodes several lengths in one batch and keeps the one with the
    highest mean log-probability of its tokens.

    The model's mode is left as it is: call ``model.eval()`` first, or dropout acts here too.

    Args:
        model: the model.
        input_ids: int64 [B, L].
        attention_mask: [B, L], not 0 at real tokens; None: every token but ``config.pad_token_id`` is real.
        token_type_ids: int64 [B, L]; None: all 0.
        length_beam: lengths tried for each source; with CTC always 1.

    Returns:
        int64 [B, length of the longest output], each row filled up with ``config.pad_token_id`` (0 if that is None).

    Raises:
        ConfigError: a ``length_beam`` below 1, or above 1 with CTC.
    """
    config = model.config
    if length_beam < 1 or (length_beam > 1 and config.decoder_length != "predicted"):
        raise ConfigError(
            f"length_beam is {length_beam}: give at least 1, and more than 1 only to a model with decoder_length "
            "'predicted'"
        )
    if attention_mask is None and config.pad_token_id is not None:
        attention_mask = input_ids != config.pad_token_id
    inputs = model.model.pack(input_ids, attention_mask, token_type_ids)
    ids_BT, lengths_B = _decode_lengths(model, inputs, length_beam) if length_beam > 1 else _greedy(model, inputs)
    beyond_BT = torch.arange(ids_BT.shape[1], device=ids_BT.device) >= lengths_B[:, None]
    return ids_BT.masked_fill(beyond_BT, config.pad_token_id or 0)[:, : int(lengths_B.max())]


def read_off(best_T: Tensor, layout: PackedLayout, config: BnbConfig) -> tuple[Tensor, Tensor]:
    """Outputs int64 [B, T] and their lengths int64 [B], from the best token of each slot, packed int64 [sum T]."""
    path_BT = layout.pad(best_T, config.blank_token_id)
    if config.decoder_length == "predicted":
        return path_BT, layout.lengths
    return collapse(path_BT, layout.lengths, config.blank_token_id)


def _greedy(model: BnbForConditionalGeneration, inputs: PackedInputs) -> tuple[Tensor, Tensor]:
    outputs = model.model(None, packed=inputs)
    hidden_TH = model.lm_head(outputs.last_hidden_state)
    best_T = linear_argmax(hidden_TH, model.get_output_embeddings().weight, model.lm_head.bias)
    return read_off(best_T, outputs.decoder_layout, model.config)


def _decode_lengths(
    model: BnbForConditionalGeneration, inputs: PackedInputs, num_candidates: int
) -> tuple[Tensor, Tensor]:
    """The best of several lengths for each source; all of them are one batch of the decoder."""
    encoded = model.model.encode(inputs)
    lengths_BK = model.model.predicted_lengths(encoded, num_candidates)
    num_candidates = lengths_BK.shape[1]
    repeated = _repeat(encoded, num_candidates)
    slots = open_slots(repeated.layout, model.config, lengths_BK.flatten())
    hidden_TH = model.lm_head(model.model.decode(repeated, slots))
    best_T, log_probs_T = linear_best(hidden_TH, model.get_output_embeddings().weight, model.lm_head.bias)
    scores_BK = (slots.layout.pad(log_probs_T).sum(1) / slots.layout.lengths).unflatten(0, (-1, num_candidates))
    chosen_B = scores_BK.argmax(1) + torch.arange(0, scores_BK.numel(), num_candidates, device=scores_BK.device)
    ids, lengths = read_off(best_T, slots.layout, model.config)
    return ids.index_select(0, chosen_B), lengths.index_select(0, chosen_B)


def _repeat(encoded: Encoded, times: int) -> Encoded:
    """Each source ``times`` times, one behind the other."""
    layout = encoded.layout
    wide = PackedLayout.from_lengths(
        layout.lengths.repeat_interleave(times),
        num_tokens=layout.num_tokens * times,
        max_seqlen=layout.max_seqlen,
    )
    source_N = layout.cu_seqlens.long().index_select(0, wide.sequence_ids // times) + wide.position_ids
    return type(encoded)(
        wide, encoded.hidden.index_select(0, source_N), encoded.latent.index_select(0, source_N), encoded.length_logits
    )
