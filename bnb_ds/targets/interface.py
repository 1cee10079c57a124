"""What a target can do, and the values that targets and the model exchange.

Shapes: B sequences, T decoder slots of all sequences together (padded: of the longest), S target tokens, H hidden size,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from bnb_ds.common.packing import PackedLayout
from bnb_ds.dag.strategies import DagOptions
from bnb_ds.targets.blocks import Blocks

IGNORED_LABEL = -100


@dataclass(frozen=True, eq=False)
class Targets:
    """Target tokens of a batch.

    Attributes:
        tokens: int64 [sum S], concatenated.
        lengths: int64 [B].
        longest: the largest length, if the caller knows it; then the host does not wait for a GPU.
        host_lengths: int64 [B], the lengths in NumPy, if the host knows them.
    """

    tokens: Tensor
    lengths: Tensor
    longest: int | None = None
    host_lengths: np.ndarray | None = None

    def at(self, index_T: Tensor, layout: PackedLayout) -> Tensor:
        """int64 [T], the token that ``index_T`` names in the target of each slot's sequence; -1 where it is -1."""
        starts_B = self.lengths.cumsum(0) - self.lengths
        place_T = starts_B.index_select(0, layout.sequence_ids) + index_T
        # A batch whose targets are all empty has nothing to look up.
        tokens = torch.nn.functional.pad(self.tokens, (0, 1), value=-1)
        return torch.where(index_T >= 0, tokens.index_select(0, place_T.clamp(0, tokens.numel() - 1)), -1)

    @property
    def known_lengths(self) -> Tensor | np.ndarray:
        """The lengths in NumPy if the host knows them, else as a tensor."""
        return self.lengths if self.host_lengths is None else self.host_lengths

    def repeat(self, times: int) -> Targets:
        """The targets of the batch, ``times`` times one after the other."""
        return Targets(self.tokens.repeat(times), self.lengths.repeat(times), self.longest)


def read_targets(labels: Tensor, label_lengths: Tensor | None, max_label_length: int | None) -> Targets:
    """Targets from labels [B, S] with -100 at places without a target, or from concatenated labels and their lengths.

    Raises:
        ValueError: shapes or lengths that do not fit together.
    """
    if label_lengths is None:
        if labels.dim() != 2:
            raise ValueError("labels must be [B, S] with -100 behind each target, or [sum S] with label_lengths")
        is_target_BS = labels != IGNORED_LABEL
        return Targets(labels[is_target_BS], is_target_BS.sum(1), max_label_length)
    if labels.dim() != 1:
        raise ValueError("with label_lengths, labels must be the targets concatenated, [sum of label_lengths]")
    if label_lengths.device.type != "cpu":
        return Targets(labels, label_lengths, max_label_length)
    longest = int(label_lengths.max())
    if max_label_length is not None and max_label_length != longest:
        raise ValueError(f"max_label_length is {max_label_length}, but the longest of label_lengths is {longest}")
    if labels.device.type != "cpu" and int(label_lengths.sum()) != labels.numel():
        raise ValueError(f"labels hold {labels.numel()} tokens, but label_lengths add up to {int(label_lengths.sum())}")
    on_device = label_lengths.to(labels.device, non_blocking=True)
    return Targets(labels, on_device, longest, label_lengths.numpy())


@dataclass(frozen=True, eq=False)
class SlotStates:
    """Decoder slots of a batch, ready for the projection to the vocabulary.

    Attributes:
        hidden: [T, H], hidden states of the LM head.
        weight: [V, H], the output matrix.
        bias: [V]; -inf switches a class off.
        layout: layout of the slots.
        links: float [B, T, T], log-probabilities of links between slots; None without a graph.
        distinct: int64 [B], slots of each sequence that CTC can use; slots that are equal count once.
        blocks: of a graph in blocks, in training; None: one block.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor
    layout: PackedLayout
    links: Tensor | None = None
    distinct: Tensor | None = None
    blocks: Blocks | None = None

    def with_targets(self, targets: Targets) -> dict[str, Any]:
        """The keyword arguments that the losses and the best paths of CTC and of a graph have in common."""
        return {
            "hidden": self.hidden,
            "weight": self.weight,
            "bias": self.bias,
            "targets": targets.tokens,
            "input_lengths": None,
            "target_lengths": targets.lengths,
            "cu_seqlens": self.layout.cu_seqlens,
            "max_input_length": self.layout.max_seqlen,
            "max_target_length": targets.longest,
        }


def joined_states(several: Sequence[SlotStates]) -> SlotStates:
    """The same sequences in several states, as one batch of that many times as many sequences."""
    first, times = several[0], len(several)
    layout = PackedLayout.from_host(np.tile(first.layout.lengths_on_host(), times), first.hidden.device)
    return replace(
        first,
        hidden=torch.cat([states.hidden for states in several]),
        layout=layout,
        links=None if first.links is None else torch.cat([states.links for states in several]),
        distinct=None if first.distinct is None else first.distinct.repeat(times),
        blocks=None if first.blocks is None else first.blocks.repeat(times),
    )


@dataclass(frozen=True, eq=False)
class Scores:
    """The loss of a batch.

    Attributes:
        loss_sum: [], sum of losses in nats, with gradient.
        count: int64 [], what the sum is divided by.
        num_infeasible: int64 [], sequences whose target cannot be written into their slots.
        kl: [], mean KL(uniform || p) over all slots, without gradient; 0 without a smoothing term.
        weights: int64 [B], what a sequence's other losses, such as that of its length, are multiplied with in the sum.
    """

    loss_sum: Tensor
    count: Tensor
    num_infeasible: Tensor
    kl: Tensor
    weights: Tensor

    def plus(self, loss_sum: Tensor) -> Scores:
        """With a loss that is added to the sum."""
        return replace(self, loss_sum=self.loss_sum + loss_sum)

    def mean_of(self, times: int) -> Scores:
        """The mean over ``times`` equal parts of the batch, which differ in their states only."""
        num_sequences = self.weights.numel() // times
        return Scores(
            self.loss_sum / times,
            self.count // times,
            self.num_infeasible // times,
            self.kl,
            self.weights[:num_sequences],
        )


def ngram_scores(loss_sum: Tensor, targets: Targets) -> Scores:
    """The scores where each sequence has the loss 1 - s and ``loss_sum`` is the sum of all -s."""
    ones_B, nothing = torch.ones_like(targets.lengths), torch.zeros_like(loss_sum)
    return Scores(loss_sum + targets.lengths.numel(), ones_B.sum(), targets.lengths.new_zeros(()), nothing, ones_B)


def loss_count(targets: Targets, infeasible_B: Tensor, loss_reduction: str) -> Tensor:
    """int64 [], what a loss sum is divided by: the sequences (``"sample"``), or the tokens of the feasible ones."""
    if loss_reduction == "sample":
        return targets.lengths.new_full((), targets.lengths.numel())
    return (targets.lengths * ~infeasible_B).sum()


@dataclass(frozen=True)
class ReadOptions:
    """How an output is read off the slots; CTC and one token a slot have nothing to choose.

    Attributes:
        dag: for a graph.
        pad: what ids hold behind an output.
        keys: uint64 [B], hashes that seed the draws of each sequence, for a graph's ``sample``; None without draws.
    """

    dag: DagOptions = field(default_factory=lambda: DagOptions("lookahead"))
    pad: int = 0
    keys: np.ndarray | None = None


class Target(Protocol):
    """Whatever reads the decoder's slots."""

    def fits(self, lengths: np.ndarray, repeats: np.ndarray, slots: np.ndarray) -> np.ndarray:
        """bool [B], whether targets can be written into their slots.

        Args:
            lengths: int64 [B], target tokens.
            repeats: int64 [B], target tokens that equal the token before them.
            slots: int64 [B], decoder slots; for CTC, those that it can use.
        """

    def scores(self, states: SlotStates, targets: Targets, given_T: Tensor | None = None) -> Scores:
        """The loss of a batch.

        Args:
            states: the slots.
            targets: the target tokens.
            given_T: bool [T], slots whose input held their target token (`bnb_ds.targets.glancing`); None: no slot.
        """

    def ngram_scores(self, states: SlotStates, targets: Targets, size: int) -> Scores:
        """The loss 1 - s of each sequence, where s says how well the n-grams of outputs and target agree, in [0, 1]."""

    def align(self, states: SlotStates, targets: Targets) -> Tensor:
        """int64 [T], the index of the target token that a slot takes on the best path; -1 for none."""

    def path_tokens(self, oracle_T: Tensor, targets: Targets, layout: PackedLayout) -> Tensor:
        """int64 [T], what slots write on the best path, which ``oracle_T`` of `align` describes; -1 beside it."""

    def glanced(self, states: SlotStates, targets: Targets, oracle_T: Tensor, ratio: float, draws_T: Tensor) -> Tensor:
        """bool [T], the slots that may see their target token in the second pass (`bnb_ds.targets.glancing`)."""

    def decode(self, states: SlotStates, options: ReadOptions) -> tuple[Tensor, Tensor]:
        """Outputs int64 [B, T], padded with ``options.pad``, and their lengths int64 [B]."""
