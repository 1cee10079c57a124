"""Convert text to token ids and back, with one tokenizer for the source and one for the target.

`Codec` owns this for a model directory: everything that reads or writes texts with a model goes through it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from bnb_ds.common.files import write_atomic
from bnb_ds.common.hub import TARGET_TOKENIZER
from bnb_ds.data.subwords.rules import PieceRules, piece_rules
from bnb_ds.data.tokenization import load_tokenizer, plain_backend, save_tokenizer
from bnb_ds.errors import CheckpointError, ConfigError
from bnb_ds.tasks.romanian import SPELLINGS, Spelling, respell
from bnb_ds.tasks.spacing import SPACING_FILE, Spacing, WordJoiner, learns_spacing, target_backend

#: file of a model directory that says how Romanian is spelled
SPELLING_FILE = "romanian.json"
#: which special tokens the letters of a source can spell: none, ``[MASK]`` alone, or all
SPECIAL_TOKENS = ("none", "mask", "all")


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
        are_cut: whether each source was too long.
        are_empty: whether each source holds nothing but special tokens.
    """

    tokens: list[np.ndarray]
    first_lengths: list[int]
    are_cut: list[bool]
    are_empty: list[bool]

    @property
    def num_cut(self) -> int:
        """Number of sources that were too long."""
        return sum(self.are_cut)


class Codec:
    """Encodes sources and targets, and decodes outputs.

    A text that contains the letters ``[SEP]`` or ``[MASK]`` is encoded as plain text, not as that special token, unless
    `encode_sources` is told otherwise. Padding and truncation that others set in the tokenizers have no effect.

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
        #: how Romanian is spelled in sources and in targets before they are encoded
        self.spelling: dict[str, Spelling] = {"source": "none", "target": "none"}
        self._joiner: tuple[Spacing, WordJoiner] | None = None
        self._backends: dict[tuple[str, str], Tokenizer] = {}
        self._rules: dict[int, PieceRules] = {}
        # Kept, because asking the tokenizer changes its state, and another thread may be decoding with it.
        self._frames: dict[tuple[str, bool], Frame] = {}

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
    def load(cls, directory: Path, read: Callable[[Path], PreTrainedTokenizerFast] = load_tokenizer) -> Codec:
        """Read what :meth:`save` wrote into a model directory.

        Args:
            directory: a model directory. Models that were saved without a second tokenizer, or without spacing, have
                none.
            read: reads one tokenizer; raises DataError.

        Raises:
            CheckpointError: the spacing or the spelling cannot be read.
        """
        source, own, spacing = read(directory), directory / TARGET_TOKENIZER, directory / SPACING_FILE
        codec = cls(source, read(own) if own.is_dir() else source, Spacing.load(spacing) if spacing.is_file() else None)
        if (directory / SPELLING_FILE).is_file():
            codec.spelling = _read_spelling(directory / SPELLING_FILE)
        return codec

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
        if self._is_respelled:
            states.append({"romanian": self.spelling})
        return hashlib.sha256(json.dumps(states, sort_keys=True).encode()).hexdigest()

    @property
    def lowercases(self) -> bool:
        """Whether the target tokenizer lowercases text."""
        normalizer = self.target.backend_tokenizer.normalizer
        return normalizer is not None and "A" not in normalizer.normalize_str("A")

    def encode_sources(
        self, texts: Sequence[tuple[str, ...]], max_length: int, *, cut: str, special_tokens: str = "none"
    ) -> EncodedSources:
        """Encode sources of one or two texts each.

        Args:
            texts: the texts of each source.
            max_length: most tokens of a source, special tokens included.
            cut: how two texts are cut that are too long together, see `bnb_ds.tasks.task.Cut`.
            special_tokens: one of `SPECIAL_TOKENS`.

        Raises:
            ConfigError: ``max_length`` has no room for text.
        """
        pair = len(texts[0]) == 2 if texts else False
        frame = self._frame("source", pair=pair)
        room = _room(frame, max_length, "max_source_length")
        columns = [
            self._ids("source", self._respelled("source", column), special_tokens)
            for column in zip(*texts, strict=True)
        ]
        firsts: list[list[int]] = columns[0] if columns else []
        seconds: list[list[int]] = columns[1] if pair else [[]] * len(texts)
        mentions = firsts
        if pair and cut == "around":
            # Behind a space, a byte-level tokenizer writes the first text with other tokens.
            mentions = self._ids("source", self._respelled("source", [f" {text[0]}" for text in texts]), special_tokens)
        encoded = EncodedSources([], [], [], [])
        for whole_first, whole_second, mention in zip(firsts, seconds, mentions, strict=True):
            first, second = _cut(whole_first, whole_second, room, cut, mention)
            encoded.are_cut.append(len(first) + len(second) < len(whole_first) + len(whole_second))
            encoded.are_empty.append(not (whole_first or whole_second))
            head = [*frame.before, *first, *frame.between]
            encoded.tokens.append(np.array([*head, *second, *frame.after] if pair else [*head, *frame.after], np.int64))
            encoded.first_lengths.append(len(head) if pair else len(encoded.tokens[-1]))
        return encoded

    def encode_targets(self, texts: Sequence[str], max_length: int) -> tuple[list[np.ndarray], int]:
        """Encode targets: int64 [m] for each, special tokens included; and the number of targets that were cut.

        Raises:
            ConfigError: ``max_length`` has no room for text.
        """
        frame = self._frame("target", pair=False)
        room = _room(frame, max_length, "max_target_length")
        ids = self.target_ids(texts)
        tokens = [np.array([*frame.before, *text[:room], *frame.after], np.int64) for text in ids]
        return tokens, sum(len(text) > room for text in ids)

    def target_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of texts as parts of targets: whole, and without special tokens."""
        return self._ids("exact" if self._exact else "target", self._respelled("target", texts))

    def target_rules(self, size: int) -> PieceRules:
        """What each id of a target vocabulary of this size writes; nothing for ids that the tokenizer lacks."""
        if size not in self._rules:
            self._rules[size] = piece_rules(self.target, size)
        return self._rules[size]

    def decode(self, outputs: Sequence[Iterable[int]]) -> list[str]:
        """Decode outputs without special tokens, each to one line."""
        rows = [output.tolist() if isinstance(output, np.ndarray) else list(output) for output in outputs]
        if self.spacing is not None:
            if self._joiner is None or self._joiner[0] is not self.spacing:
                self._joiner = (self.spacing, WordJoiner(self.target, self.spacing))
            return [self._joiner[1](row) for row in rows]
        texts = self.target.batch_decode(rows, skip_special_tokens=True)
        return [" ".join(text.split()) for text in texts]

    def save(self, directory: Path) -> None:
        """Write the tokenizers into a model directory."""
        save_tokenizer(self.source, directory)
        if self.target is not self.source:
            save_tokenizer(self.target, directory / TARGET_TOKENIZER)
        if self.spacing is not None:
            self.spacing.save(directory / SPACING_FILE)
        if self._is_respelled:
            write_atomic(directory / SPELLING_FILE, json.dumps(self.spelling) + "\n")

    @property
    def _is_respelled(self) -> bool:
        return any(spelling != "none" for spelling in self.spelling.values())

    def _respelled(self, side: str, texts: Sequence[str]) -> Sequence[str]:
        spelling = self.spelling[side]
        return texts if spelling == "none" else [respell(text, spelling) for text in texts]

    def _frame(self, side: str, *, pair: bool) -> Frame:
        if (side, pair) not in self._frames:
            self._frames[side, pair] = Frame.of(self.source if side == "source" else self.target, pair=pair)
        return self._frames[side, pair]

    def _ids(self, side: str, texts: Sequence[str], special_tokens: str = "none") -> list[list[int]]:
        if side == "target" and self.target is self.source:
            side = "source"
        backend = self._backends.get((side, special_tokens))
        if backend is None:
            tokenizer = self.source if side == "source" else self.target
            if special_tokens == "none":
                backend = target_backend(tokenizer, exact=side == "exact")
            else:
                mask = [tokenizer.mask_token or ""]
                backend = plain_backend(tokenizer, tokenizer.all_special_tokens if special_tokens == "all" else mask)
            self._backends[side, special_tokens] = backend
        return [encoding.ids for encoding in backend.encode_batch_fast(list(texts), add_special_tokens=False)]


def _read_spelling(path: Path) -> dict[str, Spelling]:
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
        if set(read) != {"source", "target"} or not set(read.values()) <= set(SPELLINGS):
            raise ValueError(f"it holds {read}")
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: is no spelling of Romanian ({error}); export the model again") from None
    return read


def _room(frame: Frame, max_length: int, field: str) -> int:
    room = max_length - frame.size
    if room < 1:
        raise ConfigError(
            f"data.{field} {max_length}: leaves no room for text beside {frame.size} special tokens; raise it"
        )
    return room


def _cut(first: list[int], second: list[int], room: int, cut: str, mention: list[int]) -> tuple[list[int], list[int]]:
    """Both texts without what has no room; ``mention`` is the first text as it is written behind a space."""
    excess = len(first) + len(second) - room
    if excess <= 0:
        return first, second
    if cut in ("last", "around") or not second:
        # If the first text fills all the room, nothing of the second is kept.
        kept = first[:room]
        room -= len(kept)
        begin = _window((first, mention), second, room) if cut == "around" else 0
        return kept, second[begin : begin + room]
    shorter = min(len(first), len(second))
    longest = max(room - shorter, -(-room // 2))
    if len(first) >= len(second):
        first = first[:longest]
        return first, second[: room - len(first)]
    second = second[:longest]
    return first[: room - len(second)], second


def _window(mentions: Iterable[list[int]], text: list[int], room: int) -> int:
    """Where to begin ``room`` tokens of a longer ``text`` with its first mention in their middle; without one at 0."""
    found = [(place, len(mention)) for mention in mentions if (place := _find(mention, text)) is not None]
    place, size = min(found, default=(0, 0))
    return min(max(place - max(room - size, 0) // 2, 0), len(text) - room)


def _find(part: list[int], text: list[int]) -> int | None:
    size = len(part)
    return next((place for place in range(len(text) - size + 1) if text[place : place + size] == part), None)
