"""Restore the spaces of decoded WordPiece text: ``Brazil ' s`` becomes ``Brazil's``.

A BERT tokenizer splits text at spaces and at punctuation, and its ids do not say which it was. `Spacing` learns from
training targets where spaces stand: a logistic regression on the words around each place, with hand-written rules of
typography as one of its features. It also learns which character an [UNK] stands for, such as a closing quotation mark
that the vocabulary lacks.

`target_backend` gives another way, which needs almost no learning: the same vocabulary, but text is split at spaces
only, and a mark inside a word becomes a continuing piece (``Brazil ##' ##s``).
"""

from __future__ import annotations

import json
import math
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Regex, Tokenizer
from tokenizers.pre_tokenizers import Sequence as InTurn
from tokenizers.pre_tokenizers import Split, WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from bnb_ds.common.files import write_atomic
from bnb_ds.data.tokenization import plain_backend
from bnb_ds.errors import CheckpointError
from bnb_ds.tasks.spacing_contexts import Contexts, Gaps, is_separate, shape

#: file of a model directory
SPACING_FILE = "spacing.json"
#: most targets to learn from, drawn at random from all of them
MOST_TARGETS = 20_000

_UNKNOWN = "[UNK]"
_FORMAT = 1
_FIRST_CHINESE = 0x2E80
#: contexts seen fewer times, and weights (in nats) smaller than that, are not kept
_FEWEST, _SMALLEST = 2, 0.01
#: weight of the typographic rules where nothing could be learnt
_RULE_WEIGHT = 4.0


class Spacing:
    """Joins words to text.

    Args:
        weights: for each kind of context, context -> weight in nats; above 0 for a space.
        bias: weight in nats of every place.
        unknown: context of an [UNK] -> the text that it most often stands for.
        alone: None for the tokenizer's own ids. For ids of the exact `target_backend`: the characters without a
            continuing piece. Only beside them and beside [UNK] must be decided whether a space stands.
    """

    def __init__(
        self,
        weights: Sequence[dict[tuple[str, ...], float]],
        bias: float,
        unknown: dict[str, str],
        *,
        alone: str | None = None,
    ) -> None:
        self._weights = list(weights)
        self._bias = bias
        self._unknown = unknown
        self._alone = alone
        self._isolated = frozenset({*unknown.values(), *(alone or ""), _UNKNOWN})

    @property
    def exact(self) -> bool:
        """Whether it is for ids of the exact `target_backend`."""
        return self._alone is not None

    @property
    def unknown_texts(self) -> list[str]:
        """The texts that an [UNK] may become."""
        return sorted(set(self._unknown.values()))

    def joins(self, word: str) -> bool:
        """Whether spaces beside this word may be left out."""
        return self._is_open(word, word)

    @classmethod
    def learn(cls, tokenizer: PreTrainedTokenizerFast, texts: Iterable[str], *, exact: bool = False) -> Spacing:
        """Learn from texts as people write them; the same texts give the same result.

        Args:
            tokenizer: of the targets.
            texts: training targets.
            exact: whether the ids will be of the exact `target_backend`.
        """
        backend = target_backend(tokenizer, exact=exact)
        places: list[tuple[tuple[str, ...], ...]] = []
        spaces: list[bool] = []
        surfaces: dict[str, Counter[str]] = defaultdict(Counter)
        split = [_split(backend, text, surfaces) for text in texts]
        unknown = {}
        for context, counts in surfaces.items():
            surface, count = min(counts.items(), key=lambda item: (-item[1], item[0]))
            if 2 * count > counts.total():
                unknown[context] = surface
        spacing = cls([], 0.0, unknown, alone=_without_continuing_piece(backend) if exact else None)
        for words, gaps in split:
            reading = Contexts(words)
            for i, gap in enumerate(gaps):
                if spacing._is_open(words[i], words[i + 1]):
                    places.append(reading.at(i))
                    spaces.append(gap)
                reading.decide(i, gap)
        spacing._weights, spacing._bias = _fit(places, spaces)
        return spacing

    def join(self, words: Sequence[str]) -> str:
        """Join the words of one text; a word is a whole one, its pieces put together."""
        words = self._known(words)
        if not words:
            return ""
        reading, parts = Contexts(words), [words[0]]
        for i in range(len(words) - 1):
            gap = not self._is_open(words[i], words[i + 1]) or self._score(reading.at(i)) > 0
            reading.decide(i, gap)
            parts.append(" " + words[i + 1] if gap else words[i + 1])
        return "".join(parts)

    def save(self, path: Path) -> None:
        """Write a JSON file."""
        values = {
            "format": _FORMAT,
            "alone": self._alone,
            "bias": round(self._bias, 3),
            "weights": [{" ".join(key): round(value, 3) for key, value in kind.items()} for kind in self._weights],
            "unknown": self._unknown,
        }
        write_atomic(path, json.dumps(values, ensure_ascii=False, separators=(",", ":")) + "\n")

    @classmethod
    def load(cls, path: Path) -> Spacing:
        """Read what :meth:`save` wrote.

        Raises:
            CheckpointError: the file cannot be read.
        """
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if values["format"] != _FORMAT:
                raise ValueError(f"format {values['format']}, known is {_FORMAT}")
            weights = [{tuple(key.split(" ")): value for key, value in kind.items()} for kind in values["weights"]]
            return cls(weights, float(values["bias"]), dict(values["unknown"]), alone=values["alone"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{path}: cannot be read as spacing ({error}); restore it, or remove it to join words as the tokenizer"
                " does"
            ) from None

    def _is_open(self, left: str, right: str) -> bool:
        """Whether the ids leave open if a space stands between two words."""
        if not self.exact:
            return is_separate(left) or is_separate(right)
        return any(word in self._isolated or (len(word) == 1 and ord(word) >= _FIRST_CHINESE) for word in (left, right))

    def _score(self, contexts: tuple[tuple[str, ...], ...]) -> float:
        score = self._bias
        for kind, context in zip(self._weights, contexts, strict=True):
            score += kind.get(context, 0.0)
        return score

    def _known(self, words: Sequence[str]) -> list[str]:
        """The words with a text for each [UNK]; one that stands for nothing known is left out."""
        if _UNKNOWN not in words:
            return list(words)
        found: list[str] = []
        for i, word in enumerate(words):
            if word == _UNKNOWN:
                context = _unknown_context(found, words[i + 1] if i + 1 < len(words) else "")
                word = self._unknown.get(context) or self._unknown.get("", "")
            if word:
                found.append(word)
        return found


class Sample:
    """Up to `MOST_TARGETS` texts drawn from a stream, each with the same chance; the same stream gives the same."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._seen = 0
        self._random = random.Random(0)

    def add(self, texts: Iterable[str]) -> None:
        """Take in further texts."""
        for text in texts:
            self._seen += 1
            if len(self.texts) < MOST_TARGETS:
                self.texts.append(text)
            elif (place := self._random.randrange(self._seen)) < MOST_TARGETS:
                self.texts[place] = text


class WordJoiner:
    """Decodes ids with a `Spacing`.

    Args:
        tokenizer: of the ids.
        spacing: where spaces stand.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, spacing: Spacing) -> None:
        self._spacing = spacing
        size = 1 + max(tokenizer.get_vocab().values())
        skipped = set(tokenizer.all_special_tokens) - {_UNKNOWN}
        pieces = tokenizer.convert_ids_to_tokens(list(range(size)))
        self._pieces = [None if piece is None or piece in skipped else piece for piece in pieces]

    def __call__(self, ids: Iterable[int]) -> str:
        """The text of one output, without special tokens, on one line."""
        words: list[str] = []
        for number in ids:
            piece = self._pieces[number] if number < len(self._pieces) else None
            if piece is None:
                continue
            if piece.startswith("##") and len(piece) > 2:
                if words and words[-1] != _UNKNOWN:
                    words[-1] += piece[2:]
                else:
                    words.append(piece[2:])
            else:
                words.append(piece)
        return self._spacing.join(words)


def learns_spacing(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether ids of this tokenizer lose spaces, so that a `Spacing` is needed: WordPiece does, bytes do not."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    kinds = [(backend[key] or {}).get("type") for key in ("model", "pre_tokenizer")]
    return kinds == ["WordPiece", "BertPreTokenizer"]


def target_backend(tokenizer: PreTrainedTokenizerFast, *, exact: bool) -> Tokenizer:
    """A tokenizer for plain targets: it neither pads nor cuts, and the letters ``[SEP]`` in a text are letters.

    Args:
        tokenizer: gives the vocabulary and the rules.
        exact: split at spaces only, so that ids keep spaces. A character without a continuing piece in the vocabulary
            still stands alone.
    """
    backend = plain_backend(tokenizer)
    if exact:
        continuing = "".join(sorted(piece[2] for piece in backend.get_vocab() if len(piece) == 3 and piece[:2] == "##"))
        alone = Regex(f"[^{re.escape(continuing)}]")
        backend.pre_tokenizer = InTurn([WhitespaceSplit(), Split(alone, "isolated")])
    return backend


def _without_continuing_piece(backend: Tokenizer) -> str:
    vocabulary = backend.get_vocab()
    return "".join(sorted(piece for piece in vocabulary if len(piece) == 1 and f"##{piece}" not in vocabulary))


def _split(backend: Tokenizer, text: str, surfaces: dict[str, Counter[str]]) -> tuple[list[str], Gaps]:
    """The words of a text, and for each place between two whether a space stands there.

    An [UNK] becomes its own text where that is a single character; what it stands for is counted in ``surfaces``.
    """
    encoded = backend.encode(text, add_special_tokens=False)
    words: list[str] = []
    gaps: Gaps = []
    unknown: list[tuple[int, str]] = []
    end = 0
    for piece, (begin, stop) in zip(encoded.tokens, encoded.offsets, strict=True):
        if piece.startswith("##") and len(piece) > 2 and words:
            words[-1] += piece[2:]
        else:
            if words:
                gaps.append(any(char.isspace() for char in text[end:begin]))
            if piece == _UNKNOWN:
                unknown.append((len(words), text[begin:stop]))
                piece = text[begin:stop] if stop - begin == 1 else piece
            words.append(piece)
        end = stop
    for place, surface in unknown:
        context = _unknown_context(words[:place], words[place + 1] if place + 1 < len(words) else "")
        surfaces[context][surface] += 1
        surfaces[""][surface] += 1
    return words, gaps


def _unknown_context(before: Sequence[str], following: str) -> str:
    """What is near an [UNK]: open low quotation marks, and the shapes of its neighbours."""
    opened = before.count("„") > sum(before.count(mark) for mark in "“”")
    return f"{int(opened)} {shape(before[-1]) if before else '<'} {shape(following) if following else '>'}"


def _fit(
    places: list[tuple[tuple[str, ...], ...]], spaces: list[bool]
) -> tuple[list[dict[tuple[str, ...], float]], float]:
    """Weights of a logistic regression for each kind of context, and its bias."""
    kinds = Contexts.NUM_KINDS
    if len(set(spaces)) < 2:  # no two kinds of places to tell apart: what was seen, and elsewhere the rules
        rules: dict[tuple[str, ...], float] = {("space",): _RULE_WEIGHT, ("joined",): -_RULE_WEIGHT}
        sign = 1 if True in spaces else -1
        seen = {place[1]: 2 * sign * _RULE_WEIGHT for place in places}
        return [rules, seen, *({} for _ in range(kinds - 2))], 0.0
    import numpy as np
    from scipy.sparse import csr_matrix
    from sklearn.linear_model import LogisticRegression

    counts = [Counter(place[kind] for place in places) for kind in range(kinds)]
    columns: dict[tuple[int, tuple[str, ...]], int] = {}
    for kind, counted in enumerate(counts):
        for context, count in counted.items():
            if count >= _FEWEST or kind == 0:
                columns[kind, context] = len(columns)
    indices: list[int] = []
    offsets = [0]
    for place in places:
        indices += [columns[kind, context] for kind, context in enumerate(place) if (kind, context) in columns]
        offsets.append(len(indices))
    # 32-bit indices: the solver takes no others.
    table = csr_matrix(
        (np.ones(len(indices)), np.array(indices, np.int32), np.array(offsets, np.int32)),
        shape=(len(places), len(columns)),
    )
    fitted = LogisticRegression(C=10.0, max_iter=200, solver="liblinear", random_state=0).fit(table, spaces)
    weights: list[dict[tuple[str, ...], float]] = [{} for _ in range(kinds)]
    for (kind, context), column in columns.items():
        value = float(fitted.coef_[0, column])
        if math.fabs(value) >= _SMALLEST:
            weights[kind][context] = value
    return weights, float(fitted.intercept_[0])
