"""The dynamic programme over paths through a graph of slots: loss, posteriors, and the backward pass by hand.

A path begins at slot 0, follows links to later slots, and ends at the last slot of its sequence; the s-th slot on it
emits the s-th target token. With emissions e_s(j) and links E_ij, both log-probabilities,

    f_0(0) = e_0(0),     f_s(j) = e_s(j) + logsumexp_i (f_{s-1}(i) + E_ij),     nll = -f_{S-1}(last)

The derivatives of the nll are minus two posteriors: that slot j emits token s, and that a path takes link i -> j.

In PyTorch there are two ways to the same numbers. `_scaled` works with probabilities in float64, in which a step is one
product of a vector and a matrix; numbers too small for float64 become 0 there. Such a loss can be bounded: it drops
paths whose probability is below `_DROPPED` of the best prefix. Where the target's own probability is so small that this
might matter (peaked links, a long and surprising target), `_in_logs` does the sequence again with logsumexp throughout.

Shapes: B sequences, L slots and S target tokens of the longest.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from bnb_ds.dag.inputs import with_forced
from bnb_ds.dag.kernels import launch_of
from bnb_ds.dag.programme import forward_backward
from bnb_ds.recurrences.host import exp_of_shares_, logsumexp_, through_host

# Sums that float64 rounds to 0 are below exp(-708) of a step's largest number. What is left of that is the share of the
# target's probability that may be dropped, exp(-40), and as much again for the number of slots and tokens.
_DROPPED = 708.0 - 40.0 - 40.0


class Posteriors(NamedTuple):
    """What the derivatives are made of; 0 for a sequence without a path.

    Attributes:
        slots: [B, L, S], probability that a slot emits a token, given the target.
        links: [B, L, L], probability that a path takes a link.
        live: int64 [M], the places, in packed order, of slots whose posteriors matter (`live_slots`), if the host knows
            how many they are.
    """

    slots: Tensor
    links: Tensor
    live: Tensor | None = None


def nll_and_posteriors(
    log_probs_BLS: Tensor,
    log_links_BLL: Tensor,
    lengths_B: Tensor,
    target_lengths_B: Tensor,
    with_posteriors: bool = True,
    forced_BL: Tensor | None = None,
) -> tuple[Tensor, Posteriors | None]:
    """Forward-backward over all sequences. With a kernel it does not wait for the device; without, it runs on the host.

    Args:
        log_probs_BLS: float32 or float64, log-probability of each target token at each slot; what stands beyond a
            length may be anything but NaN.
        log_links_BLL: log-probability of each link, -inf where there is none (`bnb_ds.dag.inputs.read_links`).
        lengths_B, target_lengths_B: int64.
        with_posteriors: False where no gradient is wanted.
        forced_BL: int64, of `bnb_ds.dag.inputs.with_forced`. What costs nothing has no derivative: where a slot is
            forced to emit a token, its posterior is said to be 0.

    Returns:
        nll: [B], in nats; +inf where no path exists, NaN where an emission or a link that a path may take is NaN.
        posteriors: None if not wanted.

    Source: Huang et al., Directed Acyclic Transformer for Non-Autoregressive Machine Translation, ICML 2022.
    """
    if log_probs_BLS.shape[1] == 0:  # no graph has a slot, and a recurrence has nothing to begin with
        nothing = Posteriors(torch.zeros_like(log_probs_BLS), torch.zeros_like(log_links_BLL))
        return log_probs_BLS.new_full((len(log_probs_BLS),), torch.inf), nothing if with_posteriors else None
    given = (log_probs_BLS, log_links_BLL, lengths_B, target_lengths_B, forced_BL)
    device = log_probs_BLS.device
    if device.type == "cpu" or launch_of(device, "alignment") is not None:
        nll_B, *posteriors = _here(*given, with_posteriors)
    else:
        recurrence = partial(_here, with_posteriors=with_posteriors, with_live=with_posteriors)
        nll_B, *posteriors = through_host(recurrence, *given)
    return nll_B, Posteriors(*posteriors) if with_posteriors else None


def _here(
    log_probs_BLS: Tensor,
    log_links_BLL: Tensor,
    lengths_B: Tensor,
    target_lengths_B: Tensor,
    forced_BL: Tensor | None,
    with_posteriors: bool,
    with_live: bool = False,
) -> tuple[Tensor | None, ...]:
    """As `nll_and_posteriors`, on the device of the tensors: nll, slots, links and live slots."""
    log_probs_BLS, is_forced_BLS = with_forced(log_probs_BLS, forced_BL)
    problem = Problem.of(log_probs_BLS, log_links_BLL, lengths_B, target_lengths_B)
    launch = launch_of(log_probs_BLS.device, "alignment")
    if launch is not None:
        nll_B, slots_BLS, taken_BLL = forward_backward(launch, *problem, with_posteriors)
    else:
        nll_B, posteriors = _in_pytorch(problem, with_posteriors)
        slots_BLS, taken_BLL = (None, None) if posteriors is None else posteriors[:2]
    if slots_BLS is not None and is_forced_BLS is not None:
        slots_BLS = slots_BLS.masked_fill_(is_forced_BLS, 0.0)
    if not with_live:
        return nll_B, slots_BLS, taken_BLL, None
    assert slots_BLS is not None
    is_slot_BL = torch.arange(slots_BLS.shape[1]) < lengths_B[:, None]
    is_live_BL = live_slots(slots_BLS.sum(2), slots_BLS.dtype)
    return nll_B, slots_BLS, taken_BLL, is_live_BL[is_slot_BL].nonzero()[:, 0]


def live_slots(size_BL: Tensor, dtype: torch.dtype) -> Tensor:
    """bool [B, L]: slots whose numbers are above the rounding of the largest one of their sequence; a NaN is too."""
    return ~(size_BL <= size_BL.amax(1, keepdim=True) * torch.finfo(dtype).eps)


def _in_pytorch(problem: Problem, with_posteriors: bool) -> tuple[Tensor, Posteriors | None]:
    nll_B, posteriors, is_sure_B = _scaled(problem, with_posteriors)
    again = (~is_sure_B).nonzero()[:, 0]
    if len(again):
        nll_again, posteriors_again = _in_logs(problem.of_sequences(again), with_posteriors)
        nll_B = nll_B.index_copy(0, again, nll_again.to(nll_B.dtype))
        if posteriors is not None and posteriors_again is not None:
            for values, values_again in zip(posteriors[:2], posteriors_again[:2], strict=True):
                values.index_copy_(0, again, values_again.to(values.dtype))
    return nll_B, posteriors


class Problem(NamedTuple):
    """One batch; the slots of a step lie in a row, for a step reads all of them.

    Attributes:
        emissions: [S, B, L], -inf beyond a sequence and its target.
        links: [B, L, L].
        last_slot: int64 [B].
        last_step: int64 [B]; -1 for an empty target.
        infeasible: bool [B], by the lengths alone.
    """

    emissions: Tensor
    links: Tensor
    last_slot: Tensor
    last_step: Tensor
    infeasible: Tensor

    @classmethod
    def of(cls, log_probs_BLS: Tensor, log_links_BLL: Tensor, lengths_B: Tensor, target_lengths_B: Tensor) -> Problem:
        """Mask what lies beyond lengths."""
        _, num_slots, num_steps = log_probs_BLS.shape
        device = log_probs_BLS.device
        is_slot_BL = torch.arange(num_slots, device=device) < lengths_B[:, None]
        is_step_BS = torch.arange(num_steps, device=device) < target_lengths_B[:, None]
        is_real_BLS = is_slot_BL[:, :, None] & is_step_BS[:, None]
        emissions_SBL = torch.where(is_real_BLS, log_probs_BLS, -torch.inf).permute(2, 0, 1).contiguous()
        enough_B = (target_lengths_B <= lengths_B) & (target_lengths_B >= lengths_B.clamp(max=2)) & (lengths_B > 0)
        return cls(emissions_SBL, log_links_BLL, lengths_B - 1, target_lengths_B - 1, ~enough_B)

    def of_sequences(self, index: Tensor) -> Problem:
        """Some of the sequences, in float64."""
        lengths_and_more = (values.index_select(0, index) for values in self[2:])
        emissions_SBL, links_BLL = self.emissions.index_select(1, index), self.links.index_select(0, index)
        return Problem(emissions_SBL.double(), links_BLL.double(), *lengths_and_more)

    def at_end(self, values_SBL: Tensor) -> Tensor:
        """[B], of each sequence's last step at its last slot; of an empty one, of anything."""
        everywhere = torch.arange(len(self.last_slot), device=self.last_slot.device)
        return values_SBL[self.last_step.clamp(min=0), everywhere, self.last_slot.clamp(min=0)]

    def end_of(self, step: int) -> Tensor:
        """[B, L], 1 at the last slot of the sequences whose target ends with this step, else 0."""
        ends_B = (self.last_step == step) & ~self.infeasible
        slots_L = torch.arange(self.links.shape[1], device=self.links.device)
        return ((slots_L == self.last_slot[:, None]) & ends_B[:, None]).to(self.links.dtype)


def _scaled(problem: Problem, with_posteriors: bool) -> tuple[Tensor, Posteriors | None, Tensor]:
    """In probabilities, float64: nll, posteriors, and bool [B] where they can be relied upon."""
    dtype = problem.emissions.dtype
    num_steps = problem.emissions.shape[0]
    highest_SB1 = problem.emissions.amax(2, keepdim=True).double()
    highest_SB1 = torch.where(highest_SB1 == -torch.inf, 0.0, highest_SB1)
    emissions_SBL = (problem.emissions - highest_SB1).exp_()
    links_BLL = problem.links.to(torch.float64, copy=True).exp_()
    # Each step's variables are divided by the largest of them, whose logarithms add up in `surprise`.
    forward_SBL = torch.zeros_like(emissions_SBL)
    largest_SB1 = torch.ones_like(highest_SB1)
    forward_SBL[0, :, 0] = emissions_SBL[0, :, 0]
    for step in range(num_steps):
        if step:
            torch.bmm(forward_SBL[step - 1][:, None], links_BLL, out=forward_SBL[step][:, None])
            forward_SBL[step].mul_(emissions_SBL[step])
        largest_B1 = forward_SBL[step].amax(1, keepdim=True)
        largest_SB1[step] = torch.where(largest_B1 > 0, largest_B1, torch.where(largest_B1 == 0, 1.0, largest_B1))
        forward_SBL[step].div_(largest_SB1[step])
    surprise_SB = largest_SB1[..., 0].log().cumsum(0)
    end_B = problem.at_end(forward_SBL)
    everywhere = problem.last_step.clamp(min=0)[None]
    total_B = end_B.log() + surprise_SB.gather(0, everywhere)[0]
    shift_B = highest_SB1[..., 0].cumsum(0).gather(0, everywhere)[0]
    nll_B = torch.where(problem.infeasible, torch.inf, -(total_B + shift_B))
    # The links of a slot may add up to more than 1, if they are no probabilities.
    gain_B = links_BLL.sum(2).amax(1).log().clamp(min=0) * num_steps
    is_sure_B = (surprise_SB.amax(0) - total_B + gain_B < _DROPPED) | problem.infeasible
    # An overflow or a NaN anywhere is left to the other way.
    is_sure_B &= problem.infeasible | nll_B.isfinite()
    if not with_posteriors:
        return nll_B.to(dtype), None, is_sure_B
    # Backward variables, divided by the same numbers and by the target's probability.
    incoming_SBL = torch.zeros_like(forward_SBL)
    slots_SBL = torch.empty_like(forward_SBL)
    inverse_B1 = torch.where(end_B > 0, 1 / end_B, 0.0)[:, None]
    backward_BL = torch.zeros_like(forward_SBL[0])
    for step in range(num_steps - 1, -1, -1):
        backward_BL = backward_BL + problem.end_of(step) * inverse_B1
        torch.mul(forward_SBL[step], backward_BL, out=slots_SBL[step])
        if step:
            torch.mul(emissions_SBL[step] / largest_SB1[step], backward_BL, out=incoming_SBL[step])
            backward_BL = torch.bmm(links_BLL, incoming_SBL[step][:, :, None])[..., 0]
    # What a link carries, summed over steps, is one matrix product.
    taken_BLL = torch.bmm(forward_SBL[:-1].permute(1, 2, 0), incoming_SBL[1:].transpose(0, 1)).mul_(links_BLL)
    return nll_B.to(dtype), Posteriors(slots_SBL.permute(1, 2, 0).to(dtype), taken_BLL.to(dtype)), is_sure_B


def _in_logs(problem: Problem, with_posteriors: bool) -> tuple[Tensor, Posteriors | None]:
    """With logsumexp at every step; for float64, since float32 drifts by 3e-5 over 128 tokens."""
    num_steps, batch_size, num_slots = problem.emissions.shape
    links_BLL = problem.links
    start_BL = links_BLL.new_full((batch_size, num_slots), -torch.inf)
    start_BL[:, 0] = 0.0
    #: of all ways into a slot, before its own emission
    arriving_SBL = links_BLL.new_empty(num_steps, batch_size, num_slots)
    arriving_SBL[0] = start_BL
    buffer_BLL = torch.empty_like(links_BLL)
    for step in range(1, num_steps):
        before_BL = arriving_SBL[step - 1] + problem.emissions[step - 1]
        torch.add(before_BL[:, :, None], links_BLL, out=buffer_BLL)
        arriving_SBL[step] = logsumexp_(buffer_BLL, 1)
    ended_B = problem.at_end(arriving_SBL + problem.emissions)
    nll_B = torch.where(problem.infeasible, torch.inf, -ended_B)
    if not with_posteriors:
        return nll_B, None
    return nll_B, _posteriors_in_logs(problem, arriving_SBL, nll_B == torch.inf, buffer_BLL)


def _posteriors_in_logs(
    problem: Problem, arriving_SBL: Tensor, has_no_path_B: Tensor, buffer_BLL: Tensor
) -> Posteriors:
    """From the last step to the first: who arrives at a slot comes from the slots before it in known shares.

    Shares add up to 1, so that the posteriors of a step do too, however far the variables have drifted.
    """
    slots_SBL = torch.empty_like(arriving_SBL)
    taken_BLL = torch.zeros_like(problem.links)
    reached_BL = torch.zeros_like(arriving_SBL[0])
    for step in range(arriving_SBL.shape[0] - 1, -1, -1):
        reached_BL = reached_BL + problem.end_of(step).masked_fill_(has_no_path_B[:, None], 0.0)
        slots_SBL[step] = reached_BL
        if step == 0:
            break
        before_BL = arriving_SBL[step - 1] + problem.emissions[step - 1]
        arriving_BL = torch.where(arriving_SBL[step] == -torch.inf, torch.inf, arriving_SBL[step])
        torch.add(before_BL[:, :, None], problem.links, out=buffer_BLL)
        exp_of_shares_(buffer_BLL.sub_(arriving_BL[:, None])).mul_(reached_BL[:, None])
        taken_BLL += buffer_BLL
        reached_BL = buffer_BLL.sum(2)
    return Posteriors(slots_SBL.permute(1, 2, 0), taken_BLL)
