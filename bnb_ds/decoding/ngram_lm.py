"""An n-gram language model of words for the CTC search, through the package ``kenlm``.

The search writes word pieces, but the language model knows words. So pieces are joined (``un ##believ ##able``), and a
word is scored when the next one begins. Words are those of BERT's basic tokeniser: punctuation marks are separate
words, and text is in lower case if the vocabulary is. Train the language model on text that is split like this.

Source: Heafield, KenLM: Faster and Smaller Language Model Queries, WMT 2011.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bnb_ds.errors import ConfigError, DataError, how_to_install

_LOG_10 = math.log(10.0)


class NgramLm:
    """A language model, with the vocabulary that turns token ids into words.

    Args:
        path: an ARPA file or a KenLM binary.
        pieces: the piece of each id of the decoder's vocabulary; ``##`` continues a word.
        special_ids: ids of tokens that are not part of words, such as [CLS] and [SEP].

    Raises:
        ConfigError: the package is not installed.
        DataError: the file cannot be read as a language model.
    """

    def __init__(self, path: str | PathLike[str], pieces: list[str], special_ids: set[int]):
        try:
            kenlm = importlib.import_module("kenlm")
        except ImportError:
            raise ConfigError(f"a language model needs the package kenlm: {how_to_install('lm')}") from None
        if not Path(path).is_file():
            raise DataError(f"{path}: no such language model; give an ARPA file or a KenLM binary")
        try:
            self._model = kenlm.Model(str(path))
        except (OSError, RuntimeError) as error:
            raise DataError(
                f"{path}: cannot be read as a language model ({' '.join(str(error).split())}); give an ARPA file or a "
                "KenLM binary"
            ) from None
        self._new_state = kenlm.State
        self._pieces = pieces
        self._special = special_ids

    def begin(self) -> Any:
        """The state at the beginning of a sentence."""
        state = self._new_state()
        self._model.BeginSentenceWrite(state)
        return state

    def add(self, state: Any, word: str) -> tuple[Any, float]:
        """The state after one more word, and the word's log-probability in nats."""
        following = self._new_state()
        return following, self._model.BaseScore(state, word, following) * _LOG_10

    def words(self, tokens: list[int]) -> list[str]:
        """The words that these tokens spell."""
        words: list[str] = []
        for token in tokens:
            if token in self._special:
                continue
            piece = self._pieces[token]
            if piece.startswith("##") and words:
                words[-1] += piece.removeprefix("##")
            else:
                words.append(piece.removeprefix("##"))
        return words

    def score(self, tokens: list[int]) -> tuple[float, int]:
        """Log-probability in nats of a complete output, sentence end included, and its number of words."""
        words = self.words(tokens)
        state, total = self.begin(), 0.0
        for word in (*words, "</s>"):
            state, nats = self.add(state, word)
            total += nats
        return total, len(words)


class LmScores:
    """A language model's scores of prefixes and outputs in one search. Scores of finished words are kept."""

    def __init__(self, lm: NgramLm, weight: float, word_bonus: float):
        self._lm = lm
        self._weight = weight
        self._bonus = word_bonus
        #: finished words of a prefix -> the state after them, and their log-probability in nats
        self._known: dict[tuple[str, ...], tuple[Any, float]] = {(): (lm.begin(), 0.0)}

    def gains(self, tokens_BCT: Tensor, lengths_BC: Tensor, alive_BC: Tensor) -> Tensor:
        """float64 [B, C]: weighted nats of the finished words of each prefix, plus the bonus of every word.

        The last word may still continue, so it is not scored.
        """
        return _table(self._of_prefix, tokens_BCT, lengths_BC, alive_BC)

    def of_outputs(self, tokens_BWT: Tensor, lengths_BW: Tensor, alive_BW: Tensor) -> Tensor:
        """float64 [B, W]: weighted nats of complete outputs, sentence end included, plus the bonus of every word."""
        return _table(self._of_output, tokens_BWT, lengths_BW, alive_BW)

    def _of_output(self, tokens: list[int]) -> float:
        nats, num_words = self._lm.score(tokens)
        return self._weight * nats + self._bonus * num_words

    def _of_prefix(self, tokens: list[int]) -> float:
        words = self._lm.words(tokens)
        if not words:
            return 0.0
        return self._weight * self._after(tuple(words[:-1]))[1] + self._bonus * len(words)

    def _after(self, words: tuple[str, ...]) -> tuple[Any, float]:
        known = self._known.get(words)
        if known is None:
            state, nats = self._after(words[:-1])
            following, gained = self._lm.add(state, words[-1])
            known = self._known[words] = (following, nats + gained)
        return known


def _table(score: Callable[[list[int]], float], tokens_BCT: Tensor, lengths_BC: Tensor, alive_BC: Tensor) -> Tensor:
    """float64 [B, C], the score of each row of tokens up to its length; 0 if it is not alive."""
    lengths, alive = lengths_BC.tolist(), alive_BC.tolist()
    rows = [
        [score(tokens[: lengths[b][c]]) if alive[b][c] else 0.0 for c, tokens in enumerate(candidates)]
        for b, candidates in enumerate(tokens_BCT.tolist())
    ]
    return torch.tensor(rows, dtype=torch.float64, device=tokens_BCT.device)
