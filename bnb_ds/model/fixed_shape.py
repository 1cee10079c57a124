"""The model on rectangles: padded rows in, the best class of each slot out, every shape known from the input's.

Packed rows have sizes that depend on the batch. A compiler wants few shapes, and a graph that leaves Python wants
shapes that follow from the input's; both are had here, by computing padding too and masking it. Outputs are those of
packed execution up to rounding. `bnb_ds.export.onnx` and `bnb_ds.generate.engines` build on it.

Shapes: B rows, L source columns, T slot columns, H hidden size, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnb_ds.common.packing import PackedInputs, PackedLayout
from bnb_ds.errors import ConfigError
from bnb_ds.model.configuration import BnbConfig
from bnb_ds.model.network import BnbLMHeadModel
from bnb_ds.model.slots import DecoderSlots, decoder_lengths, unclamped_slots


class RectangularBnb(nn.Module):
    """Encoder, decoder and arg-max of a model with CTC; parameters are the model's own.

    Raises:
        ConfigError: the model has length classification, whose number of slots depends on values.
    """

    def __init__(self, model: BnbLMHeadModel):
        super().__init__()
        if model.config.decoder_length == "predicted":
            raise ConfigError(
                "decoder_length is 'predicted': how many slots there are depends on the source's values, which a fixed "
                "graph cannot follow; only models with CTC can be compiled or exported to ONNX"
            )
        self.model = model
        self.config: BnbConfig = model.config

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The best class of each slot.

        Args:
            input_ids: int64 [B, L], real tokens first in each row.
            attention_mask: int64 [B, L], 1 at real tokens, else 0.

        Returns:
            int64 [B, T], with the blank beyond a row's own slots; T is what a source of L tokens has.
        """
        bnb, config = self.model.model, self.config
        lengths_B = attention_mask.sum(1)
        num_rows, num_columns = input_ids.shape
        source = rectangular_layout(num_rows, num_columns, attention_mask != 0)
        hidden_NH = bnb.encoder(PackedInputs(input_ids.flatten(), torch.zeros_like(input_ids).flatten(), source))
        latent_NL = bnb.latent(hidden_NH)
        memory_NH = hidden_NH if bnb.enc_to_dec_proj is None else bnb.enc_to_dec_proj(hidden_NH)
        slots, is_slot_BT = _rectangular_slots(lengths_B, num_rows, num_columns, config)
        decoded_NH = self.model.lm_head(bnb.decoder(latent_NL, memory_NH, slots, source))
        logits_NV = F.linear(decoded_NH, self.model.get_output_embeddings().weight, self.model.lm_head.bias)
        best_BT = logits_NV.argmax(-1).unflatten(0, (num_rows, -1))
        return torch.where(is_slot_BT, best_BT, config.blank_token_id)


def num_slot_columns(num_columns: int, config: BnbConfig) -> int:
    """T of L, in arithmetic that a tracer can follow: `bnb_ds.model.slots.decoder_lengths` of the widest row."""
    if config.decoder_length == "padded":
        return num_columns
    slots = torch.sym_max(unclamped_slots(num_columns, config), config.decoder_length_min)
    return slots if config.decoder_length_max is None else torch.sym_min(slots, config.decoder_length_max)


def rectangular_layout(num_rows: int, num_columns: int, is_real_BL: Tensor) -> PackedLayout:
    """A layout whose sequences all have L tokens, of which attention reads the real ones."""
    device = is_real_BL.device
    rows_B1 = torch.arange(num_rows, device=device)[:, None]
    columns_L = torch.arange(num_columns, device=device)
    return PackedLayout(
        cu_seqlens=(torch.arange(num_rows + 1, device=device) * num_columns).to(torch.int32),
        max_seqlen=num_columns,
        sequence_ids=rows_B1.expand(num_rows, num_columns).flatten(),
        position_ids=columns_L.expand(num_rows, num_columns).flatten(),
        pad_index=(rows_B1 * num_columns + columns_L).flatten(),
        key_mask=is_real_BL[:, None, None, :],
    )


def _rectangular_slots(
    lengths_B: Tensor, num_rows: int, num_columns: int, config: BnbConfig
) -> tuple[DecoderSlots, Tensor]:
    """Slots as `bnb_ds.model.slots.open_slots` lays them out, and bool [B, T], which of the columns are a row's own."""
    if config.decoder_length == "padded":
        lengths_B = torch.full_like(lengths_B, 1) * num_columns
        counts_B = lengths_B
    else:
        counts_B = decoder_lengths(lengths_B, config)
    slot_T = torch.arange(num_slot_columns(num_columns, config), device=lengths_B.device)
    token_BT = torch.div(slot_T * lengths_B[:, None], counts_B[:, None], rounding_mode="floor")
    token_BT = torch.minimum(token_BT, lengths_B[:, None] - 1)
    is_slot_BT = slot_T < counts_B[:, None]
    layout = rectangular_layout(num_rows, slot_T.shape[0], is_slot_BT)
    first_B1 = torch.arange(num_rows, device=lengths_B.device)[:, None] * num_columns
    source_index = (first_B1 + token_BT).flatten()
    if config.decoder_positions == "absolute":
        return DecoderSlots(layout, source_index, layout.position_ids, torch.zeros_like(source_index)), is_slot_BT
    repeats_BT = F.pad((token_BT[:, 1:] == token_BT[:, :-1]).to(torch.int64), (1, 0))
    return DecoderSlots(layout, source_index, token_BT.flatten(), repeats_BT.flatten()), is_slot_BT
