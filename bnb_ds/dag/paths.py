"""The one path through a graph of slots that emits a target most probably.

Shapes: B sequences, L slots and S target tokens of the longest.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bnb_ds.ctc.operands import compute_dtype
from bnb_ds.dag import programme
from bnb_ds.dag.alignment import Problem
from bnb_ds.dag.head import LinearDagHead
from bnb_ds.dag.inputs import read_forced, with_forced
from bnb_ds.dag.kernels import launch_of
from bnb_ds.dag.loss import read_all
from bnb_ds.recurrences.host import through_host


@torch.no_grad()
@torch.compiler.disable
def dag_best_path(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    log_links: Tensor,
    targets: Tensor,
    input_lengths: Tensor | None,
    target_lengths: Tensor,
    *,
    chunk_tokens: int | None = None,
    cu_seqlens: Tensor | None = None,
    max_input_length: int | None = None,
    max_target_length: int | None = None,
    forced: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The most probable path that emits each target; arguments as in `bnb_ds.dag.loss.linear_dag_loss`.

    Returns:
        path: int64 [B, L], L as in ``log_links``: the index of the target token that a slot emits; -1 for none, for
            slots beyond a length, and everywhere where the target is infeasible.
        log_prob: float32 (float64 for float64) [B], of the path and all it emits; -inf where the target is infeasible.

    Raises:
        ValueError, TypeError: as `bnb_ds.dag.loss.linear_dag_loss` says.
    """
    rows_NH, read, links_BLL = read_all(
        hidden,
        weight,
        bias,
        log_links,
        targets,
        input_lengths,
        target_lengths,
        chunk_tokens=chunk_tokens,
        cu_seqlens=cu_seqlens,
        max_input_length=max_input_length,
        max_target_length=max_target_length,
    )
    with torch.autocast(hidden.device.type, enabled=False):
        dtype = compute_dtype(rows_NH, weight)
        head = LinearDagHead(rows_NH, weight, bias, read, compute_dtype=dtype, chunk_tokens=chunk_tokens)
        forced_BL = read_forced(forced, read, num_columns=None if cu_seqlens is not None else hidden.shape[1])
        log_probs_BLK, _ = with_forced(read.layout.pad(head.log_probs()[0]), forced_BL)
        links_BLL = links_BLL.to(log_probs_BLK.dtype)
        problem = Problem.of(log_probs_BLK, links_BLL, read.layout.lengths, read.target_lengths)
        path_BL, log_prob_B = best_path(problem)
    beyond = log_links.shape[1] - path_BL.shape[1]
    return torch.nn.functional.pad(path_BL, (0, beyond), value=-1), log_prob_B


def best_path(problem: Problem) -> tuple[Tensor, Tensor]:
    """int64 [B, L] and [B], as `dag_best_path` returns them.

    Of equally good paths, that of earlier slots.
    """
    if problem.emissions.shape[2] == 0:
        num_graphs = problem.emissions.shape[1]
        return problem.last_slot.new_empty(num_graphs, 0), problem.emissions.new_full((num_graphs,), -torch.inf)
    launch = launch_of(problem.emissions.device, "best path")
    if launch is not None:
        return programme.best_path(launch, *problem)
    path_BL, log_prob_B = through_host(lambda *fields: _in_pytorch(Problem(*fields)), *problem)
    return path_BL, log_prob_B


def _in_pytorch(problem: Problem) -> tuple[Tensor, Tensor]:
    num_steps, batch_size, num_slots = problem.emissions.shape
    best_SBL = best_scores(problem.emissions, problem.links)
    log_prob_B = torch.where(problem.infeasible, -torch.inf, problem.at_end(best_SBL))
    is_possible_B = log_prob_B > -torch.inf
    slot_B = problem.last_slot.clamp(min=0)
    # One column more, for what is on no path.
    path = slot_B.new_full((batch_size, num_slots + 1), -1)
    for step in range(num_steps - 1, -1, -1):
        is_on_B = (step <= problem.last_step) & is_possible_B
        place_B1 = torch.where(is_on_B, slot_B, num_slots)[:, None]
        path.scatter_(1, place_B1, torch.where(is_on_B, step, -1)[:, None])
        if step:
            slot_B = torch.where(is_on_B, best_source(best_SBL[step - 1], problem.links, slot_B), slot_B)
    return path[:, :num_slots], log_prob_B


def best_scores(emissions_SBL: Tensor, links_BLL: Tensor) -> Tensor:
    """[S, B, L], the log-probability of the best path of s + 1 slots to each slot, with what they emit."""
    best_SBL = emissions_SBL.new_empty(emissions_SBL.shape)
    best_SBL[0] = -torch.inf
    best_SBL[0, :, 0] = emissions_SBL[0, :, 0]
    buffer_BLL = torch.empty_like(links_BLL)
    for step in range(1, len(best_SBL)):
        torch.add(best_SBL[step - 1][:, :, None], links_BLL, out=buffer_BLL)
        torch.add(buffer_BLL.amax(1), emissions_SBL[step], out=best_SBL[step])
    return best_SBL


def best_source(best_BL: Tensor, links_BLL: Tensor, slot_B: Tensor) -> Tensor:
    """int64 [B], the slot from which the best path comes to ``slot_B``, if ``best_BL`` are the scores one step before.

    For the slots of one path this is faster than to keep a source for every slot of every step.
    """
    into_BL = links_BLL.gather(2, slot_B[:, None, None].expand(-1, links_BLL.shape[1], 1))[..., 0]
    return (best_BL + into_BL).argmax(1)
