"""How the decoder's slots became an output: which slot wrote which token, and how sure the model was.

Shapes: T slots of one source, U tokens of its output, V tokens of the vocabulary, K columns: the blank with CTC, then
the output's tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from bnb_ds.common.packing import PackedLayout
from bnb_ds.ctc import inputs
from bnb_ds.ctc.greedy import logits_in_chunks
from bnb_ds.ctc.viterbi import best_path
from bnb_ds.decoding.decode import inputs_of_rows
from bnb_ds.decoding.graph import reading_bias
from bnb_ds.decoding.options import DecodeOptions
from bnb_ds.decoding.refinement import rescored, written
from bnb_ds.errors import ConfigError
from bnb_ds.generate.engines import Engine, TorchEngine
from bnb_ds.generate.pipeline import BnbPipeline

NUM_CANDIDATES = 3


@dataclass(frozen=True)
class SlotReading:
    """One slot.

    Attributes:
        token: the token it stands for in the output; None: the blank.
        writes: place of that token in the output; None: the slot writes nothing, because it is a blank or repeats the
            token of the slot before it.
        probability: of the token, or of the blank.
        candidates: the most probable tokens and their probabilities; None stands for the blank.
    """

    token: str | None
    writes: int | None
    probability: float
    candidates: list[tuple[str | None, float]]


def why_no_slots(engine: Engine) -> str | None:
    """Why nobody can tell how the engine's slots were read; None: `read_slots` can."""
    if not isinstance(engine, TorchEngine):
        return f"return_slots needs the torch model without --compile, and this service runs {engine.name}"
    if engine.config.target_kind == "dag":
        return "return_slots is for CTC and length classification; the slots of this model are a graph: leave it out"
    return None


def require_slots(engine: Engine) -> None:
    """Raise ConfigError if the engine cannot tell how its slots were read."""
    reason = why_no_slots(engine)
    if reason is not None:
        raise ConfigError(reason)


@torch.inference_mode()
def read_slots(
    pipeline: BnbPipeline, source: Sequence[int], tokens: Sequence[int], options: DecodeOptions
) -> list[SlotReading]:
    """Read the slots of one source as its output. With ``refinement``, they are those of the last pass.

    With CTC, the most probable alignment of the output and the slots is shown, a blank penalty taken off the blanks.
    With length classification, every slot writes its token. Probabilities are the model's own.

    Args:
        pipeline: runs a torch model.
        source: token ids of the source; if there are none, there are no slots.
        tokens: token ids of the output.
        options: those that gave the output.
    """
    if not source:
        return []
    engine = pipeline.engine
    assert isinstance(engine, TorchEngine)
    model, config = engine.model, engine.config
    has_blank = config.target_kind == "ctc"
    encoded = model.model.encode(inputs_of_rows(model, [source]))
    # With length classification, the slots are those of the output, which may have come from another length's beam.
    slots = model.model.open(encoded, None if has_blank else torch.tensor([len(tokens)], device=model.device))
    bias_V = reading_bias(model, options)
    if has_blank:
        states = rescored(model, encoded, slots, bias_V, options)
    else:
        states, _, _ = written(model, encoded, slots, bias_V, options)
    wanted = [config.blank_token_id, *tokens] if has_blank else list(tokens)
    best_p, best_ids, chosen = [], [], []
    for _, logits_CV in logits_in_chunks(states.hidden, states.weight, states.bias):
        log_probs_CV = logits_CV.log_softmax(-1)
        top = log_probs_CV.topk(NUM_CANDIDATES)
        best_p.append(top.values)
        best_ids.append(top.indices)
        chosen.append(log_probs_CV[:, wanted])
    log_probs_TK = torch.cat(chosen).double().cpu()
    places = list(range(len(tokens)))
    if has_blank:
        odds_TK = log_probs_TK.clone()
        odds_TK[:, 0] -= options.blank_penalty  # as the output was read
        places = align(odds_TK, tokens, blank=config.blank_token_id, vocab_size=config.vocab_size)
    names = _Names(pipeline, config.blank_token_id if has_blank else None)
    candidates = [
        [(names(token), math.exp(value)) for token, value in zip(ids, values, strict=True)]
        for ids, values in zip(torch.cat(best_ids).tolist(), torch.cat(best_p).tolist(), strict=True)
    ]
    readings = []
    before = -1
    for slot, place in enumerate(places):
        is_blank = place < 0
        readings.append(
            SlotReading(
                None if is_blank else names(tokens[place]),
                None if is_blank or place == before else place,
                math.exp(log_probs_TK[slot, place + has_blank]),  # with CTC, the blank's column comes first
                candidates[slot],
            )
        )
        before = place
    return readings


def align(log_probs_TK: torch.Tensor, tokens: Sequence[int], *, blank: int, vocab_size: int) -> list[int]:
    """The most probable CTC alignment of an output: for each slot, the place of its token, or -1 for the blank.

    Args:
        log_probs_TK: float [T, 1 + U] on the CPU, of the blank and of each token of the output; a slot's may all be
            shifted by a constant.
        tokens: the U token ids of the output.
        blank: id of the blank.
        vocab_size: size of the vocabulary.
    """
    num_slots = len(log_probs_TK)
    layout = PackedLayout.from_lengths(torch.tensor([num_slots]), num_tokens=num_slots, max_seqlen=num_slots)
    alignment = inputs.align(
        layout,
        torch.tensor(tokens, dtype=torch.int64),
        torch.tensor([len(tokens)]),
        blank=blank,
        vocab_size=vocab_size,
        max_target_length=len(tokens),
    )
    return best_path(log_probs_TK, alignment)[0].tolist()


class _Names:
    """Tokens as text; None for the blank."""

    def __init__(self, pipeline: BnbPipeline, blank: int | None):
        self._rules, self._blank = pipeline.codec.target_rules(pipeline.engine.config.vocab_size), blank

    def __call__(self, token: int) -> str | None:
        if token == self._blank:
            return None
        return self._rules.name(token) or f"[{token}]"
