"""The model on padded rows. It returns the best class of each slot, and all shapes follow from the input's shape.

The sizes of packed rows depend on the lengths in the batch. But a compiler needs few different shapes, and an exported
graph needs shapes that follow from the input's shape. So here padding is computed too, and masked. Outputs equal those
of packed execution up to rounding. `bnb_ds.export.onnx` and `bnb_ds.generate.engines` use this module.

Shapes: B rows, L source columns, T slot columns, H hidden size, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnb_ds.common.packing import PackedInputs, PackedLayout
from bnb_ds.ctc.greedy import lowered_blank
from bnb_ds.dag.strategies import emitted, next_slots, walk
from bnb_ds.errors import ConfigError
from bnb_ds.model.configuration import BnbConfig
from bnb_ds.model.lm_head_model import BnbLMHeadModel
from bnb_ds.model.slots import DecoderSlots, decoder_lengths, first_tokens, unclamped_slots


class RectangularBnb(nn.Module):
    """Encoder, decoder and arg-max of a model with CTC or with a graph of slots. It shares the model's parameters.

    Raises:
        ConfigError: the model predicts lengths, so the number of slots depends on the source's values.
    """

    def __init__(self, model: BnbLMHeadModel):
        super().__init__()
        if model.config.decoder_length == "predicted":
            raise ConfigError(
                "decoder_length is 'predicted': the number of slots depends on the source's values, which a fixed "
                "graph cannot follow; only models with decoder_length 'source' can be compiled or exported to ONNX"
            )
        self.model = model
        self.config: BnbConfig = model.config

    def forward(self, input_ids: Tensor, attention_mask: Tensor, lookahead_beta: Tensor | None = None) -> Tensor:
        """The best class of each slot; of a graph of slots, the output.

        Args:
            input_ids: int64 [B, L], real tokens first in each row.
            attention_mask: int64 [B, L], 1 at real tokens, else 0.
            lookahead_beta: float32 [], for a graph: `bnb_ds.dag.strategies.DagOptions`; 0 is greedy.

        Returns:
            int64 [B, T], with the blank beyond a row's own slots, -1 behind the output of a graph. T is the number of
            slots of a source of L tokens.
        """
        bnb, config = self.model.model, self.config
        lengths_B = attention_mask.sum(1)
        num_rows, num_columns = input_ids.shape
        source = rectangular_layout(num_rows, num_columns, attention_mask != 0)
        encoded = bnb.encode(PackedInputs(input_ids.flatten(), torch.zeros_like(input_ids).flatten(), source))
        slots, is_slot_BT = _rectangular_slots(input_ids, lengths_B, config)
        states_NH = bnb.decode(encoded, slots, self._best)
        if self.model.links is not None:
            return self._output(states_NH, slots, is_slot_BT, lookahead_beta)
        best_N = self._best(states_NH, config.decoding.get("blank_penalty", 0.0))
        return torch.where(is_slot_BT, best_N.unflatten(0, (num_rows, -1)), config.blank_token_id)

    def _best(self, hidden_NH: Tensor, blank_penalty: float = 0.0) -> Tensor:
        return self._logits(self.model.lm_head(hidden_NH), blank_penalty).argmax(-1)

    def _logits(self, hidden_NH: Tensor, blank_penalty: float = 0.0) -> Tensor:
        bias_V = self.model.lm_head.bias
        if blank_penalty:
            bias_V = lowered_blank(bias_V, self.model.config.blank_token_id, blank_penalty)
        return F.linear(hidden_NH, self.model.get_output_embeddings().weight, bias_V)

    def _output(self, states_NH: Tensor, slots: DecoderSlots, is_slot_BT: Tensor, beta: Tensor | None) -> Tensor:
        """By greedy or look-ahead decoding (`bnb_ds.dag.strategies`), with duplicates merged."""
        hidden_NH = self.model.lm_head(states_NH)
        logits_NV = self._logits(hidden_NH)
        last_B = is_slot_BT.sum(1) - 1
        links = self.model.links
        assert links is not None
        assert beta is not None, "a graph needs lookahead_beta"
        links_BTT = links(hidden_NH, slots.layout, last_B.index_select(0, slots.layout.sequence_ids))
        best_N, token_N = logits_NV.max(-1)
        log_prob_BT = (best_N - logits_NV.logsumexp(-1)).unflatten(0, (is_slot_BT.shape[0], -1))
        next_BT = next_slots(links_BTT, beta * log_prob_BT.to(links_BTT.dtype), last_B)
        path_BT, length_B = walk(next_BT, last_B, self.config.link_positions)
        return emitted(token_N.unflatten(0, (is_slot_BT.shape[0], -1)).gather(1, path_BT), length_B, True, pad=-1)[0]


def num_slot_columns(num_columns: int, config: BnbConfig) -> int:
    """`bnb_ds.model.slots.decoder_lengths` of the widest row: T from L, in arithmetic that a tracer can follow."""
    if config.decoder_length == "padded":
        return num_columns
    slots = torch.sym_max(unclamped_slots(num_columns, config), config.decoder_length_min)
    return slots if config.decoder_length_max is None else torch.sym_min(slots, config.decoder_length_max)


def rectangular_layout(num_rows: int, num_columns: int, is_real_BL: Tensor) -> PackedLayout:
    """A layout in which all sequences have L tokens, and attention reads only the real ones."""
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


def _rectangular_slots(input_ids: Tensor, lengths_B: Tensor, config: BnbConfig) -> tuple[DecoderSlots, Tensor]:
    """Slots as `bnb_ds.model.slots.open_slots` lays them out, and bool [B, T], True at a row's own slots."""
    num_rows, num_columns = input_ids.shape
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
    num_slots_T = counts_B.index_select(0, layout.sequence_ids)
    tokens = first_tokens(layout.position_ids, num_slots_T, config, input_ids.flatten(), source_index)
    if config.decoder_positions == "absolute":
        types = torch.zeros_like(source_index)
        return DecoderSlots(layout, source_index, layout.position_ids, types, tokens), is_slot_BT
    repeats_BT = F.pad((token_BT[:, 1:] == token_BT[:, :-1]).to(torch.int64), (1, 0))
    return DecoderSlots(layout, source_index, token_BT.flatten(), repeats_BT.flatten(), tokens), is_slot_BT
