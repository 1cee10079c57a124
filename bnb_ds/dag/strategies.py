"""Reading an output off a graph of slots.

Shapes: B sequences, L slots of the longest, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from bnb_ds.common.packing import on_host
from bnb_ds.common.randomness import hash64
from bnb_ds.ctc.inputs import check_integers
from bnb_ds.dag.beam_search import BeamOptions, search
from bnb_ds.dag.sampling import LINK_DRAWS, TOKEN_DRAWS, draw, slot_uniforms
from bnb_ds.dag.viterbi import viterbi
from bnb_ds.errors import nearest

STRATEGIES = ("greedy", "lookahead", "viterbi", "joint_viterbi", "beam", "sample")
#: those that compare whole paths, and therefore can keep to limits of length
SEARCHES = ("viterbi", "joint_viterbi", "beam")
HIGHEST_PENALTY = 10.0


@dataclass(frozen=True)
class DagOptions:
    """How an output is read off a graph.

    Attributes:
        strategy: ``greedy`` follows the most probable link; ``lookahead`` the link with the highest log-probability
            plus ``lookahead_beta`` times that of the best token of the slot it leads to; ``viterbi`` takes the path of
            the highest sum of link log-probabilities over length to the power ``length_penalty``, ``joint_viterbi``
            that of links and best tokens; ``beam`` the output of the highest probability summed over paths, divided
            likewise; ``sample`` draws each link, and then the tokens (`bnb_ds.dag.sampling`).
        lookahead_beta: at least 0; 0 is ``greedy``.
        length_penalty: from 0, which compares sums as they are, to 10; more favours longer outputs.
        merge_duplicates: equal tokens that stand side by side become one.
        min_length, max_length: of an output in tokens, first and last slot's included; of Viterbi's paths, before
            duplicates are merged. Where no path is so long, the longest ones are compared; where none is so short, the
            path is the first slot and the last.
        beam: what only ``beam`` reads.
        temperature: of ``sample``, above 0; below 1 makes likely links and tokens likelier.
        top_p: of ``sample``, above 0, at most 1: unlikely links and tokens are left out, so that the others hold at
            least this much of the probability.

    Raises:
        ValueError: an unknown strategy, a number out of its range, or limits that the strategy does not keep.
    """

    strategy: str = "greedy"
    lookahead_beta: float = 1.0
    length_penalty: float = 1.0
    merge_duplicates: bool = True
    min_length: int = 0
    max_length: int | None = None
    beam: BeamOptions = field(default_factory=BeamOptions)
    temperature: float = 1.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise ValueError(f"strategy is {self.strategy!r}: {nearest(self.strategy, STRATEGIES)}")
        for name in ("lookahead_beta", "length_penalty", "temperature", "top_p"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"{name} is {value!r}: give a number")
        if not 0 <= self.lookahead_beta < math.inf:
            raise ValueError(f"lookahead_beta is {self.lookahead_beta}: give a finite number of at least 0")
        if not 0 <= self.length_penalty <= HIGHEST_PENALTY:
            raise ValueError(f"length_penalty is {self.length_penalty}: give a number from 0 to {HIGHEST_PENALTY}")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature is {self.temperature}: give a finite number above 0")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}: give a number above 0 and at most 1")
        for name in ("min_length", "max_length"):
            value = getattr(self, name)
            is_left_out = name == "max_length" and value is None
            if isinstance(value, bool) or not (is_left_out or isinstance(value, int)):
                raise ValueError(f"{name} is {value!r}: give a whole number")
        if self.min_length < 0:
            raise ValueError(f"min_length is {self.min_length}: give at least 0")
        if self.max_length is not None and self.max_length < max(self.min_length, 1):
            raise ValueError(f"max_length is {self.max_length}: give at least 1 and at least min_length")
        has_limits = self.min_length > 0 or self.max_length is not None
        if has_limits and self.strategy not in SEARCHES:
            raise ValueError(
                f"strategy {self.strategy!r} keeps to no min_length or max_length: use one of {', '.join(SEARCHES)}"
            )


@torch.no_grad()
def dag_decode(
    log_probs: Tensor,
    log_links: Tensor,
    lengths: Tensor,
    strategy: str = "greedy",
    lookahead_beta: float = 1.0,
    length_penalty: float = 1.0,
    merge_duplicates: bool = True,
    *,
    min_length: int = 0,
    max_length: int | None = None,
    beam_size: int = 20,
    candidates: int = 5,
    lm: Callable[[tuple[int, ...], int], float] | None = None,
    lm_weight: float = 0.0,
    temperature: float = 1.0,
    top_p: float = 1.0,
    keys: Sequence[int] | None = None,
    pad: int = 0,
) -> tuple[Tensor, Tensor]:
    """Outputs of a batch of graphs; each depends on its own graph alone.

    Args:
        log_probs: float [B, L, V], log-probability of each token at each slot.
        log_links: float [B, L, L], log-probability of going from slot i to slot j > i; others are not read.
        lengths: integers [B], slots of each graph, at least 1; what stands beyond them is not read.
        strategy, lookahead_beta, length_penalty, merge_duplicates, min_length, max_length: see `DagOptions`.
        beam_size, candidates, lm, lm_weight: see `bnb_ds.dag.beam_search.BeamOptions`.
        temperature, top_p: see `DagOptions`.
        keys: B numbers of at least 0 that seed the draws of ``sample``; None: 0, 1, 2, ...
        pad: what ids hold behind an output.

    Returns:
        ids: int64 [B, L], left-aligned; the tokens of the first and the last slot are among them.
        lengths: int64 [B].

    Raises:
        ValueError: tensors or ``keys`` of the wrong shape, a length out of [1, L], NaN in a link (both looked for on a
            CPU alone), or options that `DagOptions` refuses.
        TypeError: lengths that are not integers, links that are.
    """
    options = DagOptions(
        strategy,
        lookahead_beta,
        length_penalty,
        merge_duplicates,
        min_length,
        max_length,
        BeamOptions(beam_size, candidates, lm, lm_weight),
        temperature,
        top_p,
    )
    if log_probs.dim() != 3:
        raise ValueError(f"log_probs has shape {tuple(log_probs.shape)}: give [B, L, V]")
    if strategy == "beam":
        best_BLC = log_probs.topk(min(candidates, log_probs.shape[2]), 2)
        return decode_candidates(best_BLC.indices, best_BLC.values, log_links, lengths, options, pad=pad)
    if strategy == "sample":
        seeds = np.arange(len(log_probs)) if keys is None else np.asarray(keys)
        if seeds.shape != (len(log_probs),) or (seeds.size and (seeds.dtype.kind not in "iu" or seeds.min() < 0)):
            found, wanted = seeds.tolist(), len(log_probs)
            raise ValueError(f"keys are {found}: give a whole number of at least 0 for each of {wanted} graphs")
        path_BL, length_B, uniform_BL = sampled_path(log_probs[..., 0], log_links, lengths, options, hash64(seeds))
        on_path_BLV = log_probs.gather(1, path_BL[..., None].expand_as(log_probs))
        return emitted(draw(on_path_BLV, uniform_BL, temperature, top_p), length_B, merge_duplicates, pad)
    best_BL = log_probs.max(2)
    return decode_best(best_BL.indices, best_BL.values, log_links, lengths, options, pad=pad)


@torch.no_grad()
def decode_best(
    token_BL: Tensor,
    log_prob_BL: Tensor,
    log_links: Tensor,
    lengths: Tensor,
    options: DagOptions,
    *,
    pad: int = 0,
    most_slots: int | None = None,
) -> tuple[Tensor, Tensor]:
    """`dag_decode` from the best token of each slot and its log-probability alone, not for ``beam`` and ``sample``.

    ``greedy`` and ``lookahead`` wait for no device, and can be exported with a dynamic number of slots, if
    ``most_slots`` says how many there can be.
    """
    path_BL, length_B = best_slots(log_prob_BL, log_links, lengths, options, most_slots=most_slots)
    return emitted(token_BL.gather(1, path_BL), length_B, options.merge_duplicates, pad)


@torch.no_grad()
def best_slots(
    log_prob_BL: Tensor, log_links: Tensor, lengths: Tensor, options: DagOptions, *, most_slots: int | None = None
) -> tuple[Tensor, Tensor]:
    """The slots that a strategy passes: int64 [B, L], then the last slot; and int64 [B], how many they are.

    Not for ``beam`` and ``sample``. Arguments as in `decode_best`.
    """
    assert options.strategy not in ("beam", "sample"), "these choose more than a path"
    links_BLL, last_B = _checked(log_prob_BL, log_links, lengths)
    is_slot_BL = torch.arange(log_prob_BL.shape[1], device=log_prob_BL.device) <= last_B[:, None]
    log_prob_BL = torch.where(is_slot_BL, log_prob_BL.to(links_BLL.dtype), 0.0)
    if options.strategy in ("greedy", "lookahead"):
        beta = options.lookahead_beta if options.strategy == "lookahead" else 0.0
        bonus_BL = beta * log_prob_BL if beta else None
        return walk(next_slots(links_BLL, bonus_BL, last_B), last_B, most_slots)
    emission_BL = log_prob_BL if options.strategy == "joint_viterbi" else torch.zeros_like(log_prob_BL)
    limits = (options.length_penalty, options.min_length, options.max_length)
    path_BL, length_B, _ = viterbi(emission_BL, links_BLL, last_B, *limits)
    return path_BL, length_B


@torch.no_grad()
def sampled_path(
    values_BL: Tensor, log_links: Tensor, lengths: Tensor, options: DagOptions, keys: np.ndarray
) -> tuple[Tensor, Tensor, Tensor]:
    """The slots of drawn paths, as `best_slots`; and float64 [B, L], a number in [0, 1) for the token of each.

    Args:
        values_BL: of any values; says shape and device.
        log_links, lengths, options: as in `decode_best`.
        keys: uint64 [B], hashes.
    """
    links_BLL, last_B = _checked(values_BL, log_links, lengths)
    num_slots, device = values_BL.shape[1], values_BL.device
    link_BL = slot_uniforms(keys, LINK_DRAWS, num_slots, device)
    next_BL = draw(links_BLL, link_BL, options.temperature, options.top_p)
    has_link_BL = links_BLL.amax(2) > -torch.inf
    path_BL, length_B = walk(torch.where(has_link_BL, next_BL, last_B[:, None]), last_B)
    return path_BL, length_B, slot_uniforms(keys, TOKEN_DRAWS, num_slots, device).gather(1, path_BL)


@torch.no_grad()
def decode_candidates(
    token_BLC: Tensor, log_prob_BLC: Tensor, log_links: Tensor, lengths: Tensor, options: DagOptions, *, pad: int = 0
) -> tuple[Tensor, Tensor]:
    """`dag_decode` by ``beam``, from the C best tokens of each slot, best first; on the host."""
    links_BLL, last_B = _checked(token_BLC[..., 0], log_links, lengths)
    ids_BL = torch.full(token_BLC.shape[:2], pad, dtype=torch.int64)
    length_B = torch.zeros(len(ids_BL), dtype=torch.int64)
    device = token_BLC.device
    # Only here does the host wait for the device.
    token_BLC, log_prob_BLC, links_BLL, last_B = on_host((token_BLC, log_prob_BLC, links_BLL, last_B))
    host = [values.numpy() for values in (token_BLC, log_prob_BLC.double(), links_BLL.double())]
    for index, last in enumerate(last_B.tolist()):
        tokens_LC, log_probs_LC, links_LL = (values[index, : last + 1] for values in host)
        best = search(
            tokens_LC,
            log_probs_LC,
            links_LL[:, : last + 1],
            options.beam,
            length_penalty=options.length_penalty,
            merge_duplicates=options.merge_duplicates,
            min_length=options.min_length,
            max_length=options.max_length,
        )
        if best:
            tokens = torch.tensor(best[0].tokens)
        else:
            # No state of the beam reached the end within the limits; Viterbi's search leaves nothing out.
            alone = slice(index, index + 1)
            instead = replace(options, strategy="joint_viterbi")
            ids, length = decode_best(
                token_BLC[alone, :, 0], log_prob_BLC[alone, :, 0], links_BLL[alone], last_B[alone] + 1, instead
            )
            tokens = ids[0, : int(length)]
            tokens = tokens[: options.beam.longest_allowed(tokens.tolist())]
        ids_BL[index, : len(tokens)] = tokens
        length_B[index] = len(tokens)
    return ids_BL.to(device, non_blocking=True), length_B.to(device, non_blocking=True)


def _checked(values_BL: Tensor, log_links: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """[B, L, L] links, -inf where a path may not go; int64 [B] the last slot of each graph."""
    batch_size, num_slots = values_BL.shape
    if log_links.shape != (batch_size, num_slots, num_slots):
        shape = tuple(log_links.shape)
        raise ValueError(f"log_links has shape {shape}: give [B, L, L] with B = {batch_size} and L = {num_slots}")
    if not log_links.is_floating_point():
        raise TypeError(f"log_links has dtype {log_links.dtype}: give log-probabilities in a floating dtype")
    check_integers("lengths", lengths)
    if lengths.shape != (batch_size,):
        raise ValueError(f"lengths has shape {tuple(lengths.shape)}: give [{batch_size}]")
    last_B = lengths.to(values_BL.device).long() - 1
    slot_L = torch.arange(num_slots, device=values_BL.device)
    is_link_BLL = (slot_L[:, None] < slot_L) & (slot_L <= last_B[:, None])[:, None]
    if values_BL.device.type == "cpu" and not torch.compiler.is_compiling() and not torch.jit.is_tracing():
        shortest, longest = (int(last_B.min()) + 1, int(last_B.max()) + 1) if batch_size else (1, 1)
        if shortest < 1 or longest > num_slots:
            wrong = shortest if shortest < 1 else longest
            raise ValueError(f"lengths holds {wrong}: lengths must lie between 1 and {num_slots}")
        if bool((log_links.isnan() & is_link_BLL).any()):
            raise ValueError("log_links holds NaN: a link must be a log-probability, -inf where there is none")
    links_BLL = log_links if log_links.dtype == torch.float64 else log_links.float()
    return torch.where(is_link_BLL, links_BLL, -torch.inf), last_B


def next_slots(links_BLL: Tensor, bonus_BL: Tensor | None, last_B: Tensor) -> Tensor:
    """int64 [B, L], where a walk goes on from each slot; from the last one, or where no link leads on, to the last."""
    score_BLL = links_BLL if bonus_BL is None else links_BLL + bonus_BL[:, None]
    best_BL, next_BL = score_BLL.max(2)
    return torch.where(best_BL == -torch.inf, last_B[:, None], next_BL)


def walk(next_BL: Tensor, last_B: Tensor, most_slots: int | None = None) -> tuple[Tensor, Tensor]:
    """The slots from the first to the last, int64 [B, L] padded with the last, and how many they are, int64 [B].

    Step t of a walk is reached by jumps of 1, 2, 4, ... slots, those of the binary digits of t: log2 L rounds in all.
    """
    num_slots = next_BL.shape[1]
    step_L = torch.arange(num_slots, device=next_BL.device)
    path_BL = torch.zeros_like(next_BL)
    jump_BL, size = next_BL, 1
    while size < (num_slots if most_slots is None else most_slots):
        path_BL = torch.where((step_L // size) % 2 == 1, jump_BL.gather(1, path_BL), path_BL)
        jump_BL, size = jump_BL.gather(1, jump_BL), 2 * size
    return path_BL, (path_BL != last_B[:, None]).sum(1) + 1


def emitted(token_BL: Tensor, length_B: Tensor, merge_duplicates: bool, pad: int = 0) -> tuple[Tensor, Tensor]:
    """Tokens along a path, int64 [B, L], as an output: ids and lengths as `dag_decode` returns them."""
    num_slots = token_BL.shape[1]
    step_L = torch.arange(num_slots, device=token_BL.device)
    is_kept_BL = step_L < length_B[:, None]
    if merge_duplicates:
        # By index, not by slices of L - 1 steps, which an export takes for a case of their own where L is 2.
        before_BL = token_BL.index_select(1, (step_L - 1).clamp(min=0))
        is_kept_BL = is_kept_BL & ((step_L == 0) | (token_BL != before_BL))
    # A boolean index would wait for the device; so everything dropped goes to one spare column behind the row.
    place_BL = torch.where(is_kept_BL, is_kept_BL.cumsum(1) - 1, num_slots)
    spare = token_BL.new_full((token_BL.shape[0], num_slots + 1), pad)
    ids_BL = spare.scatter(1, place_BL, torch.where(is_kept_BL, token_BL, pad))
    return ids_BL[:, :num_slots], is_kept_BL.sum(1)
