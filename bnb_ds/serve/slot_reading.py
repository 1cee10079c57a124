"""How the decoder's slots became an output: which slot wrote which token, and how sure the model was.

Shapes: T slots of one source, U tokens of its output, S = 2U + 1 states of the alignment, V tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from bnb_ds.ctc.greedy import logits_in_chunks
from bnb_ds.errors import ConfigError
from bnb_ds.generate.engines import Engine, TorchEngine
from bnb_ds.generate.pipeline import BnbPipeline
from bnb_ds.model.slots import open_slots

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


def require_slots(engine: Engine) -> None:
    """Raise ConfigError if the engine cannot tell how its slots were read."""
    if not isinstance(engine, TorchEngine):
        raise ConfigError(f"return_slots needs the torch model without --compile, and this service runs {engine.name}")


@torch.inference_mode()
def read_slots(pipeline: BnbPipeline, source: Sequence[int], tokens: Sequence[int]) -> list[SlotReading]:
    """Read the slots of one source as its output.

    With CTC, the most probable alignment of the output and the slots is shown. With length classification, every slot
    writes its token.

    Args:
        pipeline: runs a torch model.
        source: token ids of the source; if there are none, there are no slots.
        tokens: token ids of the output.
    """
    if not source:
        return []
    engine = pipeline.engine
    assert isinstance(engine, TorchEngine)
    model, config = engine.model, engine.config
    has_blank = config.decoder_length != "predicted"
    inputs = model.model.pack(**_packed(pipeline, source))
    if has_blank:
        hidden = model.model.run(inputs).last_hidden_state
    else:
        encoded = model.model.encode(inputs)
        slots = open_slots(encoded.layout, config, torch.tensor([len(tokens)], device=model.device))
        hidden = model.model.decode(encoded, slots)
    hidden_TH = model.lm_head(hidden)
    wanted = [config.blank_token_id, *tokens] if has_blank else list(tokens)
    best_p, best_ids, chosen = [], [], []
    for _, logits_CV in logits_in_chunks(hidden_TH, model.get_output_embeddings().weight, model.lm_head.bias):
        log_probs_CV = logits_CV.log_softmax(-1)
        top = log_probs_CV.topk(NUM_CANDIDATES)
        best_p.append(top.values)
        best_ids.append(top.indices)
        chosen.append(log_probs_CV[:, wanted])
    log_probs = torch.cat(chosen).double().cpu().numpy()
    path = align(log_probs, tokens) if has_blank else np.arange(len(tokens))
    names = _Names(pipeline, config.blank_token_id if has_blank else None)
    candidates = [
        [(names(token), float(np.exp(value))) for token, value in zip(ids, values, strict=True)]
        for ids, values in zip(torch.cat(best_ids).tolist(), torch.cat(best_p).tolist(), strict=True)
    ]
    readings = []
    before = -1
    for slot, state in enumerate(path.tolist()):
        # With CTC, column 0 is the blank and column u + 1 is token u of the output.
        place, column = (state // 2, (state // 2 + 1) * (state % 2)) if has_blank else (state, state)
        is_blank = has_blank and column == 0
        readings.append(
            SlotReading(
                None if is_blank else names(tokens[place]),
                None if is_blank or state == before else place,
                float(np.exp(log_probs[slot, column])),
                candidates[slot],
            )
        )
        before = state
    return readings


def align(log_probs: np.ndarray, tokens: Sequence[int]) -> np.ndarray:
    """The most probable CTC alignment of an output.

    Args:
        log_probs: float64 [T, 1 + U], of the blank and of each token of the output.
        tokens: the U token ids of the output.

    Returns:
        int64 [T], the state of each slot: 2u + 1 for token u, 2u for the blank before it.
    """
    num_slots, num_tokens = log_probs.shape[0], len(tokens)
    columns = np.zeros(2 * num_tokens + 1, np.int64)
    columns[1::2] = np.arange(1, num_tokens + 1)
    emissions_TS = log_probs[:, columns]
    # A token may follow its predecessor without a blank between them, unless the two are equal.
    may_skip_S = np.zeros(len(columns), bool)
    for place in range(1, num_tokens):
        may_skip_S[2 * place + 1] = tokens[place] != tokens[place - 1]
    score_S = np.full(len(columns), -np.inf)
    score_S[:2] = emissions_TS[0, :2]
    moves_TS = np.zeros((num_slots, len(columns)), np.int64)
    for slot in range(1, num_slots):
        one_S = np.concatenate(([-np.inf], score_S[:-1]))
        two_S = np.where(may_skip_S, np.concatenate(([-np.inf, -np.inf], score_S))[: len(columns)], -np.inf)
        choices = np.stack((score_S, one_S, two_S))
        moves_TS[slot] = choices.argmax(0)
        score_S = choices.max(0) + emissions_TS[slot]
    state = len(columns) - 1
    if num_tokens and score_S[state - 1] > score_S[state]:
        state -= 1
    path = np.empty(num_slots, np.int64)
    for slot in range(num_slots - 1, -1, -1):
        path[slot] = state
        state -= moves_TS[slot, state]
    return path


class _Names:
    """Tokens as text; None for the blank."""

    def __init__(self, pipeline: BnbPipeline, blank: int | None):
        self._tokenizer, self._blank = pipeline.tokenizer, blank

    def __call__(self, token: int) -> str | None:
        if token == self._blank:
            return None
        name = self._tokenizer.convert_ids_to_tokens(token)
        return name if isinstance(name, str) else f"[{token}]"


def _packed(pipeline: BnbPipeline, source: Sequence[int]) -> dict[str, object]:
    """The arguments of the model's ``pack`` for one source, padded as in decoding."""
    engine = pipeline.engine
    assert isinstance(engine, TorchEngine)
    device = engine.model.device
    if engine.config.decoder_length != "padded":
        ids = torch.tensor(source, device=device)
        ends = torch.tensor([0, len(source)], dtype=torch.int32, device=device)
        return {"input_ids": ids, "cu_seqlens": ends, "max_seqlen": len(source)}
    ids = torch.full((1, engine.config.encoder.max_position_embeddings), engine.config.pad_token_id or 0)
    ids[0, : len(source)] = torch.tensor(source)
    mask = (torch.arange(ids.shape[1]) < len(source)).long()[None]
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
