"""The network that says how probable it is to go from one slot to another.

With u_j = [h_j ; q_j], the decoder's state of slot j and a learned vector of its place, and heads a,

    log E_ij = logsumexp_a( log softmax_a(W_g u_i)_a + log softmax_{j > i}( (W_q u_i)_a . (W_k u_j)_a / sqrt(D) ) )

Scores exist for a few rows i at a time, forwards and backwards: [B, A, L, L] numbers would be the largest tensor of a
training step.

Shapes: B sequences, L slots of the longest, N real slots of all sequences together, I rows of a block, A heads,
D = H / A numbers of a head, H hidden size.

Source: Huang et al., Directed Acyclic Transformer for Non-Autoregressive Machine Translation, ICML 2022.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnb_ds.common.packing import PackedLayout
from bnb_ds.ctc.operands import exact_dtype
from bnb_ds.recurrences.host import exp_of_shares_, logsumexp_

_NO_SECOND_DERIVATIVE = (
    "links have no second derivative: their gradient is written by hand. Call backward without create_graph=True"
)
#: of scores of all heads: what a CPU's cache holds, and what keeps a GPU busy for longer than its launches take
_BLOCK_BYTES, _BLOCK_BYTES_OF_GPU = 16 << 20, 192 << 20


class LinkNetwork(nn.Module):
    """Log-probabilities of links between the slots of each sequence.

    Parameters are used in float32 (float64 for float64 states), also under autocast and in a model of 16 bits.

    Args:
        hidden_size: H, a multiple of ``num_heads``.
        num_heads: A.
        max_slots: places that have a vector of their own.
        initializer_range: standard deviation of the parameters at the start.

    Raises:
        ValueError: ``hidden_size`` is no multiple of ``num_heads``.
    """

    def __init__(self, hidden_size: int, num_heads: int, max_slots: int, initializer_range: float = 0.02):
        super().__init__()
        if num_heads < 1 or hidden_size % num_heads:
            raise ValueError(f"num_heads is {num_heads}: give a divisor of the hidden size {hidden_size}")
        self.num_heads = num_heads
        self.positions = nn.Embedding(max_slots, hidden_size)
        self.query = nn.Linear(2 * hidden_size, hidden_size)
        self.key = nn.Linear(2 * hidden_size, hidden_size)
        self.gate = nn.Linear(2 * hidden_size, num_heads)
        for name, parameter in self.named_parameters():
            nn.init.zeros_(parameter) if name.endswith("bias") else nn.init.normal_(parameter, std=initializer_range)

    def forward(self, hidden_NH: Tensor, layout: PackedLayout, furthest_N: Tensor | None = None) -> Tensor:
        """Links of all sequences.

        Args:
            hidden_NH: float, states of the real slots, packed.
            layout: the sequences.
            furthest_N: int64, the last slot of its sequence that each slot may link to; None: the sequence's last.

        Returns:
            float32 (float64 for float64 states) [B, L, L], log-probability of going from slot i to slot j > i; -inf
            elsewhere.

        Raises:
            ValueError: a sequence has more slots than there are places.
        """
        if torch.compiler.is_compiling() and not torch.is_grad_enabled():
            return self._traced(hidden_NH, layout, furthest_N)
        if layout.max_seqlen > self.positions.num_embeddings:
            raise ValueError(
                f"a graph of {layout.max_seqlen} slots is longer than the {self.positions.num_embeddings} places of "
                "the links: make max_slots larger, or use fewer slots"
            )
        with torch.autocast(hidden_NH.device.type, enabled=False):
            return _MixedLinks.apply(*self._operands(hidden_NH, layout, furthest_N))

    def _traced(self, hidden_NH: Tensor, layout: PackedLayout, furthest_N: Tensor | None) -> Tensor:
        """Without blocks, which an exported graph could not have, and without the gradient written by hand."""
        query_BALD, key_BALD, gate_BAL, furthest_BL = self._operands(hidden_NH, layout, furthest_N)
        log_probs_BALL = _log_probs(query_BALD, key_BALD, furthest_BL, slice(None))
        return (log_probs_BALL + gate_BAL[..., None]).logsumexp(1)

    def _operands(
        self, hidden_NH: Tensor, layout: PackedLayout, furthest_N: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Queries and keys [B, A, L, D], log-gates [B, A, L], and int64 [B, L], the last slot to link to."""
        dtype = exact_dtype(hidden_NH.dtype)
        places_NH = F.embedding(layout.position_ids, self.positions.weight.to(dtype))
        states_NU = torch.cat((hidden_NH.to(dtype), places_NH), 1)
        query_BALD, key_BALD = (self._heads(states_NU, linear, layout) for linear in (self.query, self.key))
        gate_BAL = layout.pad(self._project(states_NU, self.gate).log_softmax(1)).transpose(1, 2)
        furthest_BL = (layout.lengths[:, None] - 1).expand(-1, layout.max_seqlen)
        if furthest_N is not None:
            furthest_BL = torch.minimum(layout.pad(furthest_N), furthest_BL)
        return query_BALD, key_BALD, gate_BAL, furthest_BL

    def _heads(self, states_NU: Tensor, linear: nn.Linear, layout: PackedLayout) -> Tensor:
        """[B, A, L, D], 0 beyond a length."""
        return layout.pad(self._project(states_NU, linear)).unflatten(2, (self.num_heads, -1)).transpose(1, 2)

    @staticmethod
    def _project(states_NU: Tensor, linear: nn.Linear) -> Tensor:
        return F.linear(states_NU, linear.weight.to(states_NU.dtype), linear.bias.to(states_NU.dtype))


class _MixedLinks(torch.autograd.Function):
    """[B, L, L] from queries, keys and log-gates; each block of rows is worked out anew in backward."""

    @staticmethod
    def forward(ctx: Any, query_BALD: Tensor, key_BALD: Tensor, gate_BAL: Tensor, furthest_BL: Tensor) -> Tensor:
        links_BLL = query_BALD.new_empty(query_BALD.shape[0], query_BALD.shape[2], query_BALD.shape[2])
        for rows in _blocks(query_BALD):
            log_probs_BAIL = _log_probs(query_BALD, key_BALD, furthest_BL, rows).add_(gate_BAL[:, :, rows, None])
            links_BLL[:, rows] = logsumexp_(log_probs_BAIL, 1)
        ctx.save_for_backward(query_BALD, key_BALD, gate_BAL, furthest_BL, links_BLL)
        return links_BLL

    @staticmethod
    def backward(ctx: Any, grad_BLL: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(_NO_SECOND_DERIVATIVE)
        query_BALD, key_BALD, gate_BAL, furthest_BL, links_BLL = ctx.saved_tensors
        grad_query, grad_key, grad_gate = (torch.zeros_like(t) for t in (query_BALD, key_BALD, gate_BAL))
        scale = query_BALD.shape[-1] ** -0.5
        for rows in _blocks(query_BALD):
            log_probs_BAIL = _log_probs(query_BALD, key_BALD, furthest_BL, rows)
            is_link_BIL = links_BLL[:, rows] > -torch.inf
            links_BIL = torch.where(is_link_BIL, links_BLL[:, rows], torch.inf)
            grad_BIL = torch.where(is_link_BIL, grad_BLL[:, rows], 0.0)
            # What of a link's derivative falls to each head: the head's share of its probability.
            share_BAIL = (log_probs_BAIL + gate_BAL[:, :, rows, None]).sub_(links_BIL[:, None])
            exp_of_shares_(share_BAIL).mul_(grad_BIL[:, None])
            grad_gate[:, :, rows] = share_BAIL.sum(3)
            scores_BAIL = share_BAIL.sub_(exp_of_shares_(log_probs_BAIL).mul_(grad_gate[:, :, rows, None])).mul_(scale)
            grad_query[:, :, rows] = scores_BAIL @ key_BALD
            grad_key += scores_BAIL.mT @ query_BALD[:, :, rows]
        return grad_query, grad_key, grad_gate, None


def _blocks(query_BALD: Tensor) -> Iterator[slice]:
    batch_size, num_heads, num_slots, _ = query_BALD.shape
    row_bytes = max(batch_size * num_heads * num_slots, 1) * query_BALD.element_size()
    size = max((_BLOCK_BYTES if query_BALD.device.type == "cpu" else _BLOCK_BYTES_OF_GPU) // row_bytes, 1)
    return (slice(begin, min(begin + size, num_slots)) for begin in range(0, num_slots, size))


def _log_probs(query_BALD: Tensor, key_BALD: Tensor, furthest_BL: Tensor, rows: slice) -> Tensor:
    """[B, A, I, L], of each head's links from the slots of a block; -inf where there are none."""
    scores_BAIL = query_BALD[:, :, rows] @ key_BALD.mT * query_BALD.shape[-1] ** -0.5
    slot_L = torch.arange(key_BALD.shape[2], device=key_BALD.device)
    is_link_BIL = (slot_L[rows, None] < slot_L) & (slot_L <= furthest_BL[:, rows, None])
    log_probs_BAIL = scores_BAIL.masked_fill_(~is_link_BIL[:, None], -torch.inf).log_softmax(3)
    return log_probs_BAIL.masked_fill_(~is_link_BIL.any(2)[:, None, :, None], -torch.inf)
