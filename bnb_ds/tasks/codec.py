"""Convert text to token ids and back, with one tokenizer for the source and one for the target."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from bnb_ds.common.hub import TARGET_TOKENIZER
from bnb_ds.data.tokenization import save_tokenizer
from bnb_ds.errors import ConfigError
from bnb_ds.tasks.spacing import SPACING_FILE, Spacing, WordJoiner, learns_spacing, target_backend


@dataclass(frozen=True)
class Frame:
    """The special tokens that a tokenizer adds around one text, or around and between two."""

    before: tuple[int, ...]
    between: tuple[int, ...]
    after: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerFast, *, pair: bool) -> Frame:
        """Find them by encoding one text, or two."""
        encoded = tokenizer("a", "a" if pair else None, return_special_tokens_mask=True)
        parts: list[list[int]] = [[]]
        for token, special in zip(encoded["input_ids"], encoded["special_tokens_mask"], strict=True):
            if special:
                parts[-1].append(token)
            elif len(parts) == 1 or parts[-1]:
                parts.append([])  # the next text begins
        before, *rest = map(tuple, parts)
        return cls(before, rest[0] if pair else (), rest[-1] if rest else ())

    @property
    def size(self) -> int:
        return len(self.before) + len(self.between) + len(self.after)


@dataclass(frozen=True)
class EncodedSources:
    """Sources as token ids.

    Attributes:
        tokens: int64 [n] for each source, special tokens included.
        first_lengths: number of tokens of each source before its second text begins.
        num_cut: number of sources that were too long.
    """

    tokens: list[np.ndarray]
    first_lengths: list[int]
    num_cut: int


class Codec:
    """Encodes the sources and targets of a task, and decodes outputs.

    A text that contains the letters ``[SEP]`` or ``[MASK]`` is encoded as plain text, not as that special token.

    Args:
        source: tokenizer of the sources.
        target: tokenizer of the targets; the same object if one serves for both.
        spacing: where spaces stand between the words of outputs; None: as the tokenizer joins them.
    """

    def __init__(
        self, source: PreTrainedTokenizerFast, target: PreTrainedTokenizerFast, spacing: Spacing | None = None
    ) -> None:
        self.source = source
        self.target = target
        self.spacing = spacing
        self._exact = spacing is not None and spacing.exact
        self._joiner: tuple[Spacing, WordJoiner] | None = None

    @property
    def exact_targets(self) -> bool:
        """Whether ids of targets keep spaces, see `bnb_ds.tasks.spacing.target_backend`."""
        return self._exact

    def use_exact_targets(self) -> None:
        """Let ids of targets keep spaces.

        Raises:
            ConfigError: the target tokenizer is not a BERT WordPiece tokenizer.
        """
        if not learns_spacing(self.target):
            raise ConfigError(
                "data.target_spacing pieces: needs a BERT WordPiece tokenizer for the targets; remove this setting, or"
                " give another data.target_tokenizer"
            )
        self._exact = True

    @classmethod
    def of_model(cls, source: PreTrainedTokenizerFast, target: PreTrainedTokenizerFast, directory: Path) -> Codec:
        """A codec with the spacing that :meth:`save` wrote into a model directory, if any."""
        return cls(source, target, spacing_of(directory))

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of everything that determines the ids of a text."""
        states = []
        for tokenizer in (self.source, self.target):
            state = json.loads(tokenizer.backend_tokenizer.to_str())
            states.append({key: value for key, value in state.items() if key not in ("padding", "truncation")})
            states.append({name: str(token) for name, token in tokenizer.special_tokens_map.items()})
        if self._exact:
            states.append({"exact_targets": True})
        return hashlib.sha256(json.dumps(states, sort_keys=True).encode()).hexdigest()

    @property
    def lowercases(self) -> bool:
        """Whether the target tokenizer lowercases text."""
        normalizer = json.loads(self.target.backend_tokenizer.to_str())["normalizer"] or {}
        return bool(normalizer.get("lowercase"))

    def encode_sources(self, texts: Sequence[tuple[str, ...]], max_length: int, *, cut: str) -> EncodedSources:
        """Encode sources of one or two texts each.

        Args:
            texts: the texts of each source.
            max_length: most tokens of a source, special tokens included.
            cut: which of two texts is cut: the ``longest`` (until both are equally long) or the ``last``.

        Raises:
            ConfigError: ``max_length`` has no room for text.
        """
        pair = len(texts[0]) == 2 if texts else False
        frame = Frame.of(self.source, pair=pair)
        room = _room(frame, max_length, "max_source_length")
        columns = [self._ids(self.source, column) for column in zip(*texts, strict=True)]
        tokens, first_lengths, num_cut = [], [], 0
        for ids in zip(*columns, strict=True):
            first, second = _cut(ids[0], ids[1] if pair else [], room, cut)
            num_cut += len(first) + len(second) < sum(map(len, ids))
            head = [*frame.before, *first, *frame.between]
            tokens.append(np.array([*head, *second, *frame.after] if pair else [*head, *frame.after], np.int64))
            first_lengths.append(len(head) if pair else len(tokens[-1]))
        return EncodedSources(tokens, first_lengths, num_cut)

    def encode_targets(self, texts: Sequence[str], max_length: int) -> tuple[list[np.ndarray], int]:
        """Encode targets: int64 [m] for each, special tokens included; and the number of targets that were cut.

        Raises:
            ConfigError: ``max_length`` has no room for text.
        """
        frame = Frame.of(self.target, pair=False)
        room = _room(frame, max_length, "max_target_length")
        if self._exact:
            encodings = self._exact_backend.encode_batch_fast(list(texts), add_special_tokens=False)
            ids = [encoding.ids for encoding in encodings]
        else:
            ids = self._ids(self.target, texts)
        tokens = [np.array([*frame.before, *text[:room], *frame.after], np.int64) for text in ids]
        return tokens, sum(len(text) > room for text in ids)

    def decode(self, outputs: Sequence[np.ndarray]) -> list[str]:
        """Decode outputs without special tokens, each to one line."""
        if self.spacing is not None:
            if self._joiner is None or self._joiner[0] is not self.spacing:
                self._joiner = (self.spacing, WordJoiner(self.target, self.spacing))
            join = self._joiner[1]
            return [join(output.tolist()) for output in outputs]
        texts = self.target.batch_decode([output.tolist() for output in outputs], skip_special_tokens=True)
        return [" ".join(text.split()) for text in texts]

    @functools.cached_property
    def _exact_backend(self) -> Tokenizer:
        return target_backend(self.target, exact=True)

    def save(self, directory: Path) -> None:
        """Write the tokenizers into a model directory."""
        save_tokenizer(self.source, directory)
        if self.target is not self.source:
            save_tokenizer(self.target, directory / TARGET_TOKENIZER)
        if self.spacing is not None:
            self.spacing.save(directory / SPACING_FILE)

    @staticmethod
    def _ids(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        # verbose=False: no warning about texts that are too long for the model, because they are cut later.
        encoded: Any = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True, verbose=False)
        return encoded["input_ids"]


def spacing_of(directory: Path) -> Spacing | None:
    """The spacing of a model directory; None for models that were saved without.

    Raises:
        CheckpointError: its file cannot be read.
    """
    path = directory / SPACING_FILE
    return Spacing.load(path) if path.is_file() else None


def _room(frame: Frame, max_length: int, field: str) -> int:
    room = max_length - frame.size
    if room < 1:
        raise ConfigError(
            f"data.{field} {max_length}: leaves no room for text beside {frame.size} special tokens; raise it"
        )
    return room


def _cut(first: list[int], second: list[int], room: int, cut: str) -> tuple[list[int], list[int]]:
    excess = len(first) + len(second) - room
    if excess <= 0:
        return first, second
    if cut == "last" or not second:
        # If the first text fills all the room, nothing of the second is kept.
        first = first[:room]
        return first, second[: room - len(first)]
    shorter = min(len(first), len(second))
    longest = max(room - shorter, -(-room // 2))
    if len(first) >= len(second):
        first = first[:longest]
        return first, second[: room - len(first)]
    second = second[:longest]
    return first[: room - len(second)], second
