"""Batches without padding: one row of real tokens, and the place of each sequence in it.

Shapes: B sequences, L columns of padded input, N real tokens of all sequences together, M tokens of the longest one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, eq=False)
class PackedLayout:
    """The place of each sequence in a row of packed tokens. It is made once per batch and read by every layer.

    Attributes:
        cu_seqlens: int32 [B+1], start of each sequence in the row, then N.
        max_seqlen: M, as a Python number.
        sequence_ids: int64 [N], the sequence of each token.
        position_ids: int64 [N], the index of each token within its sequence.
        pad_index: int64 [N], the place of each token in the padded [B*M] order.
        key_mask: bool [B, 1, 1, M], True at real tokens. None if all sequences have M real tokens; `keep_padding` makes
            sequences of M tokens of which some are [PAD].
        host_lengths: int64 [B], the lengths in NumPy, if the host knows them; None: only the device does.
    """

    cu_seqlens: Tensor
    max_seqlen: int
    sequence_ids: Tensor
    position_ids: Tensor
    pad_index: Tensor
    key_mask: Tensor | None
    host_lengths: np.ndarray | None = None

    @classmethod
    def from_cu_seqlens(
        cls, cu_seqlens: Tensor, *, num_tokens: int, max_seqlen: int, host_lengths: np.ndarray | None = None
    ) -> PackedLayout:
        """The layout of ``num_tokens`` tokens. Both counts are Python numbers, so that the host never waits for the
        device.
        """
        device = cu_seqlens.device
        batch_size = cu_seqlens.numel() - 1
        starts_B = cu_seqlens[:-1].long()
        lengths_B = cu_seqlens[1:].long() - starts_B
        sequence_ids_N = torch.repeat_interleave(lengths_B, output_size=num_tokens)
        position_ids_N = torch.arange(num_tokens, device=device) - starts_B.index_select(0, sequence_ids_N)
        key_mask = None
        if num_tokens != batch_size * max_seqlen:
            key_mask = (torch.arange(max_seqlen, device=device) < lengths_B[:, None])[:, None, None, :]
        return cls(
            cu_seqlens=cu_seqlens,
            max_seqlen=max_seqlen,
            sequence_ids=sequence_ids_N,
            position_ids=position_ids_N,
            pad_index=sequence_ids_N * max_seqlen + position_ids_N,
            key_mask=key_mask,
            host_lengths=host_lengths,
        )

    @classmethod
    def from_host(cls, lengths_B: np.ndarray, device: torch.device) -> PackedLayout:
        """The layout on ``device`` of sequences whose lengths the host knows, integers [B]; it does not wait."""
        lengths_B = np.asarray(lengths_B, np.int64)
        cu_seqlens = torch.from_numpy(np.concatenate(([0], lengths_B.cumsum())).astype(np.int32))
        return cls.from_cu_seqlens(
            cu_seqlens.to(device, non_blocking=True),
            num_tokens=int(lengths_B.sum()),
            max_seqlen=int(lengths_B.max()),
            host_lengths=lengths_B,
        )

    @classmethod
    def from_lengths(cls, lengths_B: Tensor, *, num_tokens: int, max_seqlen: int) -> PackedLayout:
        """The layout of sequences with these lengths, int64 [B]."""
        cu_seqlens = F.pad(lengths_B.cumsum(0, dtype=torch.int32), (1, 0))
        return cls.from_cu_seqlens(cu_seqlens, num_tokens=num_tokens, max_seqlen=max_seqlen)

    def rows(self, rows: list[int]) -> tuple[PackedLayout, Tensor]:
        """The layout of these sequences alone, and the places of their tokens in this one, int64 [tokens of theirs]."""
        lengths, device = self.lengths_on_host(), self.cu_seqlens.device
        ends = lengths.cumsum()
        places = [torch.arange(ends[row] - lengths[row], ends[row], device=device) for row in rows]
        return PackedLayout.from_host(lengths[rows], device), torch.cat(places)

    @property
    def masks_tokens(self) -> bool:
        """Whether the row itself holds [PAD] tokens, which attention must not read."""
        return self.key_mask is not None and self.num_tokens == self.batch_size * self.max_seqlen

    @property
    def batch_size(self) -> int:
        """B."""
        return self.cu_seqlens.numel() - 1

    @property
    def num_tokens(self) -> int:
        """N."""
        return self.pad_index.numel()

    @property
    def lengths(self) -> Tensor:
        """int64 [B], tokens of each sequence."""
        return self.cu_seqlens.diff().long()

    def lengths_on_host(self) -> np.ndarray:
        """int64 [B] in NumPy. The host waits for the device here, unless it knows the lengths."""
        return self.lengths.cpu().numpy() if self.host_lengths is None else self.host_lengths

    def pad(self, packed: Tensor, value: float = 0.0) -> Tensor:
        """[N, ...] -> [B, M, ...], with ``value`` at places without a token. Without padding the result is a view."""
        shape = (self.batch_size, self.max_seqlen)
        if self.key_mask is None or self.masks_tokens:
            return packed.unflatten(0, shape)
        padded = packed.new_full((shape[0] * shape[1], *packed.shape[1:]), value)
        return padded.index_copy_(0, self.pad_index, packed).unflatten(0, shape)

    def unpad(self, padded: Tensor) -> Tensor:
        """[B, M, ...] -> [N, ...]. Without padding the result is a view."""
        flat = padded.flatten(0, 1)
        return flat if self.key_mask is None or self.masks_tokens else flat.index_select(0, self.pad_index)


@dataclass(frozen=True, eq=False)
class PackedInputs:
    """Model inputs without padding.

    Attributes:
        input_ids: int64 [N].
        token_type_ids: int64 [N].
        layout: the place of each sequence.
        padded_index: int64 [N], the place of each token in the caller's [B*L] order; None if the input was packed.
        padded_shape: (B, L) of the caller's input; None if the input was packed.
    """

    input_ids: Tensor
    token_type_ids: Tensor
    layout: PackedLayout
    padded_index: Tensor | None = None
    padded_shape: tuple[int, int] | None = None

    @property
    def is_packed(self) -> bool:
        """Whether the caller gave packed tensors, and so gets packed tensors back."""
        return self.padded_shape is None

    def restore(self, packed: Tensor) -> Tensor:
        """Packed values [N, ...] in the caller's form: [B, L, ...] with zeros at padding, or unchanged [N, ...]."""
        if self.is_packed:
            return packed
        num_places = self.padded_shape[0] * self.padded_shape[1]
        padded = packed.new_zeros((num_places, *packed.shape[1:]))
        return padded.index_copy_(0, self.padded_index, packed).unflatten(0, self.padded_shape)


def types_of_pairs(inputs: PackedInputs, separator_id: int) -> Tensor:
    """Token types, int64 [N], of one or two texts each: 1 behind a sequence's first separator up to its second one."""
    layout, is_separator_N = inputs.layout, inputs.input_ids == separator_id
    before_N = is_separator_N.cumsum(0) - is_separator_N.long()
    starts_N = layout.cu_seqlens[:-1].long().index_select(0, layout.sequence_ids)
    return (before_N - before_N.index_select(0, starts_N) == 1).long()


def on_host(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Tensors on the CPU; the host waits for their device once for all of them.

    Gradients pass through tensors of one dtype. Those of several travel as bytes, and gradients do not pass.
    """
    if not tensors or tensors[0].device.type == "cpu":
        return list(tensors)
    if len({tensor.dtype for tensor in tensors}) == 1:
        flat = torch.cat([tensor.flatten() for tensor in tensors]).cpu()
        parts = flat.split([tensor.numel() for tensor in tensors])
        return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]
    # The widest numbers come first, so that each tensor begins at a multiple of its own width.
    order = sorted(range(len(tensors)), key=lambda index: -tensors[index].element_size())
    ordered = [tensors[index] for index in order]
    flat = torch.cat([tensor.flatten().view(torch.uint8) for tensor in ordered]).cpu()
    parts = flat.split([tensor.numel() * tensor.element_size() for tensor in ordered])
    found = {
        index: part.view(tensor.dtype).view(tensor.shape)
        for index, part, tensor in zip(order, parts, ordered, strict=True)
    }
    return [found[index] for index in range(len(tensors))]


def pack_inputs(
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    token_type_ids: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    max_seqlen: int | None = None,
    host_lengths: np.ndarray | None = None,
) -> PackedInputs:
    """Bring padded or packed model inputs into packed form.

    Args:
        input_ids: int64 [B, L], or packed [N] with ``cu_seqlens``.
        attention_mask: [B, L], not 0 at real tokens, which may be anywhere in a row; None: all tokens are real. With
            packed input it must be None.
        token_type_ids: int64, same shape as ``input_ids``; None: all 0.
        cu_seqlens: int32 [B+1], starts of the packed sequences, then N. On the CPU, with tokens on a GPU, the host does
            not wait, and the slots that follow from the lengths cost no wait either.
        max_seqlen: tokens of the longest sequence, if the caller knows it; then the host does not wait for
            ``cu_seqlens`` on a GPU, whose values are not checked.
        host_lengths: int64 [B], real tokens of each row of padded input, if the caller has counted them.

    Raises:
        ValueError: shapes that do not fit together, or a sequence without a real token.
    """
    if token_type_ids is None:
        token_type_ids = torch.zeros_like(input_ids)
    elif token_type_ids.shape != input_ids.shape:
        raise ValueError(
            f"token_type_ids has shape {tuple(token_type_ids.shape)} and input_ids {tuple(input_ids.shape)}: give the "
            "same shape"
        )
    if cu_seqlens is None:
        return _pack_padded(input_ids, attention_mask, token_type_ids, host_lengths)
    if input_ids.dim() != 1 or attention_mask is not None:
        raise ValueError("with cu_seqlens, input_ids must be one row of real tokens [N] without attention_mask")
    return PackedInputs(input_ids, token_type_ids, _check_packed(input_ids, cu_seqlens, max_seqlen))


def keep_padding(input_ids: Tensor, attention_mask: Tensor | None, token_type_ids: Tensor | None) -> PackedInputs:
    """Padded inputs [B, L] in packed form, padding included. [PAD] positions are computed, but attention masks them.

    The reference implementation runs like this. The model's output for a source then depends on L.

    Raises:
        ValueError: shapes that do not fit together, or a sequence without a real token.
    """
    real = pack_inputs(input_ids, attention_mask, token_type_ids)  # it checks the arguments
    batch_size, num_columns = input_ids.shape
    layout = PackedLayout.from_host(np.full(batch_size, num_columns), input_ids.device)
    if attention_mask is not None and real.layout.num_tokens != input_ids.numel():
        layout = replace(layout, key_mask=(attention_mask != 0)[:, None, None, :])
    types = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
    everywhere = torch.arange(input_ids.numel(), device=input_ids.device)
    return PackedInputs(input_ids.flatten(), types.flatten(), layout, everywhere, (batch_size, num_columns))


def _pack_padded(
    input_ids: Tensor, attention_mask: Tensor | None, token_type_ids: Tensor, host_lengths: np.ndarray | None
) -> PackedInputs:
    if input_ids.dim() != 2:
        raise ValueError(f"input_ids has {input_ids.dim()} dimensions: give [B, L], or [N] with cu_seqlens")
    shape = (input_ids.shape[0], input_ids.shape[1])
    device = input_ids.device
    if attention_mask is None:
        layout = _layout_of_lengths(np.full(shape[0], shape[1]), device)
        everywhere_N = torch.arange(input_ids.numel(), device=device)
        return PackedInputs(input_ids.flatten(), token_type_ids.flatten(), layout, everywhere_N, shape)
    if attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)} and input_ids {shape}: give the same shape"
        )
    real_BL = attention_mask != 0
    # Only here does the host wait for the device, because all later shapes depend on the lengths.
    lengths = real_BL.sum(1).cpu().numpy() if host_lengths is None else host_lengths
    layout = _layout_of_lengths(lengths, device)
    index_N = _places(real_BL.flatten(), layout.num_tokens)
    return PackedInputs(
        input_ids.flatten().index_select(0, index_N),
        token_type_ids.flatten().index_select(0, index_N),
        layout,
        index_N,
        shape,
    )


def _places(is_real_P: Tensor, number: int) -> Tensor:
    """int64 [number], where ``is_real_P`` is True, of which the caller knows the number."""
    if is_real_P.device.type == "cpu":
        return is_real_P.nonzero(as_tuple=True)[0]
    # `nonzero` would wait for the device. All other places go to a spare entry behind the end.
    order_P = torch.where(is_real_P, is_real_P.cumsum(0) - 1, number)
    places_P = torch.arange(is_real_P.numel(), device=is_real_P.device)
    return places_P.new_empty(number + 1).scatter_(0, order_P, places_P)[:number]


def _layout_of_lengths(lengths_B: np.ndarray, device: torch.device) -> PackedLayout:
    if lengths_B.size == 0:
        raise ValueError("input_ids holds no sequence: give at least one")
    if lengths_B.min() < 1:
        raise ValueError(f"attention_mask: sequence {lengths_B.argmin()} has no real token: leave it out of the batch")
    return PackedLayout.from_host(lengths_B, device)


def _check_packed(input_ids: Tensor, cu_seqlens: Tensor, max_seqlen: int | None) -> PackedLayout:
    num_tokens = input_ids.numel()
    if cu_seqlens.dim() != 1 or cu_seqlens.numel() < 2 or cu_seqlens.is_floating_point():
        raise ValueError("cu_seqlens must be int32 [B+1]: the start of each sequence, and the number of tokens")
    if max_seqlen is not None and cu_seqlens.device.type != "cpu":
        # Checking values would make the host wait for the device. The caller who gives max_seqlen is trusted.
        return PackedLayout.from_cu_seqlens(cu_seqlens, num_tokens=num_tokens, max_seqlen=int(max_seqlen))
    starts = cu_seqlens.cpu().numpy().astype(np.int64)
    lengths_B = np.diff(starts)
    longest = int(lengths_B.max())
    if starts[0] != 0 or starts[-1] != num_tokens or lengths_B.min() < 1:
        raise ValueError(f"cu_seqlens must rise from 0 to the {num_tokens} tokens of input_ids, with no empty sequence")
    if max_seqlen is not None and int(max_seqlen) != longest:
        raise ValueError(f"max_seqlen is {max_seqlen}, but the longest sequence of cu_seqlens has {longest} tokens")
    on_device = cu_seqlens.to(input_ids.device, non_blocking=True)
    return PackedLayout.from_cu_seqlens(on_device, num_tokens=num_tokens, max_seqlen=longest, host_lengths=lengths_B)


def lowest_of_each(may_T: Tensor, number_B: Tensor, values_T: Tensor, layout: PackedLayout) -> Tensor:
    """bool [T]: of the slots where ``may_T`` is True, the ``number_B`` with the lowest values of each sequence.

    Args:
        may_T: bool.
        number_B: int64; of a sequence with fewer such slots, all are taken.
        values_T: float, below infinity. Of equal values, the first ones are taken.
        layout: of the slots, or of tokens.
    """
    values_BM = layout.pad(torch.where(may_T, values_T, torch.inf), torch.inf)
    # Stable, so that equal values are in the order of slots on every device.
    order_BM = values_BM.sort(dim=1, stable=True).indices
    ranks_BM = torch.empty_like(order_BM)
    ranks_BM.scatter_(1, order_BM, torch.arange(order_BM.shape[1], device=order_BM.device).expand_as(order_BM))
    return layout.unpad(ranks_BM < number_B[:, None]) & may_T
