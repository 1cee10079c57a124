"""From a trained model to text ids: greedy CTC decoding.

Shapes: B sequences, L source columns, T decoder slots of the longest sequence (in packed form: of all), H hidden size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bnb_ds.ctc import collapse, linear_argmax
from bnb_ds.packing import pack_inputs

if TYPE_CHECKING:
    from bnb_ds.modeling import BnbForConditionalGeneration


@torch.inference_mode()
def generate(
    model: BnbForConditionalGeneration,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    token_type_ids: Tensor | None = None,
) -> Tensor:
    """Decode all positions at once: the best token of each slot, repeats merged, then blanks dropped.

    The model's mode is left as it is: call ``model.eval()`` first, or dropout acts here too.

    Args:
        model: the model.
        input_ids: int64 [B, L].
        attention_mask: [B, L], not 0 at real tokens; None: every token but ``config.pad_token_id`` is real.
        token_type_ids: int64 [B, L]; None: all 0.

    Returns:
        int64 [B, length of the longest output], each row filled up with ``config.pad_token_id`` (0 if that is None).
    """
    config = model.config
    if attention_mask is None and config.pad_token_id is not None:
        attention_mask = input_ids != config.pad_token_id
    inputs = pack_inputs(input_ids, attention_mask, token_type_ids)
    outputs = model.model(None, packed=inputs)
    hidden_TH = model.lm_head(outputs.last_hidden_state)
    best_T = linear_argmax(hidden_TH, model.get_output_embeddings().weight, model.lm_head.bias)
    path_BT = outputs.decoder_layout.pad(best_T, config.blank_token_id)
    ids_BT, lengths_B = collapse(path_BT, outputs.decoder_lengths, config.blank_token_id)
    beyond_BT = torch.arange(ids_BT.shape[1], device=ids_BT.device) >= lengths_B[:, None]
    return ids_BT.masked_fill(beyond_BT, config.pad_token_id or 0)[:, : int(lengths_B.max())]
