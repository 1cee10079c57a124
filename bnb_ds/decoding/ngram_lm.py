"""An n-gram language model of words for the CTC search, through the package ``kenlm``.

The search writes word pieces, but the language model knows words. So pieces are joined (``un ##believ ##able``, or
``Ġun believ able``), and a word is scored when the next one begins. Words are those of BERT's basic tokeniser, whatever
the tokenizer: punctuation marks are separate words, and text is in lower case if the vocabulary is. Train the language
model on text that is split like this.

Source: Heafield, KenLM: Faster and Smaller Language Model Queries, WMT 2011.
"""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bnb_ds.data.subwords.characters import word_of
from bnb_ds.data.subwords.rules import PieceRules
from bnb_ds.errors import ConfigError, DataError, how_to_install

_LOG_10 = math.log(10.0)


class NgramLm:
    """A language model, with the vocabulary that turns token ids into words.

    Args:
        path: an ARPA file or a KenLM binary.
        rules: what each id of the decoder's vocabulary writes.

    Raises:
        ConfigError: the package is not installed.
        DataError: the file cannot be read as a language model.
    """

    def __init__(self, path: str | PathLike[str], rules: PieceRules):
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
        self._rules = rules

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
        words, open_text = [], ""
        for token in tokens:
            more, open_text = self.grow(open_text, token)
            words += more
        return [*words, word_of(open_text)] if open_text else words

    def grow(self, open_text: str, token: int) -> tuple[list[str], str]:
        """The words that one more token shows to be whole, and the text of the last word, which may go on."""
        return self._rules.grow(open_text, token)

    def score(self, tokens: list[int]) -> tuple[float, int]:
        """Log-probability in nats of a complete output, sentence end included, and its number of words."""
        words = self.words(tokens)
        state, total = self.begin(), 0.0
        for word in (*words, "</s>"):
            state, nats = self.add(state, word)
            total += nats
        return total, len(words)


@dataclass(frozen=True, slots=True)
class _Heard:
    """What the language model knows of a prefix: its state after all words but the last, their nats, the text of the
    last word, and the number of words, the last one included.
    """

    state: Any
    nats: float = 0.0
    last_text: str = ""
    num_words: int = 0


class TextScores:
    """A language model's weighted nats of texts that grow token by token, for the search in a graph.

    Args:
        lm: the language model.
        weight: factor on its nats.
        word_bonus: nats for every word.
    """

    def __init__(self, lm: NgramLm, weight: float, word_bonus: float):
        self._lm, self._weight, self._bonus = lm, weight, word_bonus
        self._heard: dict[tuple[int, ...], _Heard] = {(): _Heard(lm.begin())}

    def __call__(self, text: tuple[int, ...], token: int) -> float:
        """What one more token adds: the nats of the word that it shows to be whole, and the bonus of a new one."""
        return self._total((*text, token)) - self._total(text)

    def end(self, text: tuple[int, ...]) -> float:
        """What the end of a text adds: the nats of its last word and of the end of the sentence."""
        heard = self._of(text)
        state, nats = heard.state, 0.0
        for word in (word_of(heard.last_text), "</s>") if heard.last_text else ("</s>",):
            state, more = self._lm.add(state, word)
            nats += more
        return self._weight * nats

    def _of(self, text: tuple[int, ...]) -> _Heard:
        if text not in self._heard:
            self._heard[text] = _hear(self._lm, self._of(text[:-1]), text[-1])
        return self._heard[text]

    def _total(self, text: tuple[int, ...]) -> float:
        heard = self._of(text)
        return self._weight * heard.nats + self._bonus * heard.num_words


def _hear(lm: NgramLm, heard: _Heard, token: int) -> _Heard:
    """What is known of a prefix with one more token."""
    words, last_text = lm.grow(heard.last_text, token)
    state, nats = heard.state, heard.nats
    for word in words:
        state, more = lm.add(state, word)
        nats += more
    num_words = heard.num_words + len(words) + bool(last_text) - bool(heard.last_text)
    return _Heard(state, nats, last_text, num_words)


class LmScores:
    """A language model's scores of prefixes and outputs in one search. Prefixes are known by the hash of their tokens.

    Args:
        lm: the language model.
        weight: factor on its nats.
        word_bonus: nats for every word.
        empty: hash of the empty prefix.
    """

    def __init__(self, lm: NgramLm, weight: float, word_bonus: float, empty: int = 0):
        self._lm = lm
        self._weight = weight
        self._bonus = word_bonus
        self._heard = {empty: _Heard(lm.begin())}

    def gains(self, hashes_BC: Tensor, parents_BC: Tensor, last_BC: Tensor, alive_BC: Tensor) -> Tensor:
        """float64 [B, C]: weighted nats of the finished words of each prefix, plus the bonus of every word.

        The last word may still continue, so it is not scored.

        Args:
            hashes_BC: the prefixes.
            parents_BC: the prefixes without their last tokens, of which this function was asked before.
            last_BC: their last tokens.
            alive_BC: False: the place is unused, and its score is 0.
        """
        columns = (values.flatten().tolist() for values in (hashes_BC, parents_BC, last_BC, alive_BC))
        gains = [self._gain(*prefix) if is_alive else 0.0 for *prefix, is_alive in zip(*columns, strict=True)]
        return torch.tensor(gains, dtype=torch.float64, device=hashes_BC.device).reshape(hashes_BC.shape)

    def of_outputs(self, tokens_BWT: Tensor, lengths_BW: Tensor, alive_BW: Tensor) -> Tensor:
        """float64 [B, W]: weighted nats of complete outputs, sentence end included, plus the bonus of every word; 0 at
        those that are not alive.
        """
        lengths, alive = lengths_BW.tolist(), alive_BW.tolist()
        rows = [
            [self._of_output(tokens[: lengths[b][w]]) if alive[b][w] else 0.0 for w, tokens in enumerate(outputs)]
            for b, outputs in enumerate(tokens_BWT.tolist())
        ]
        return torch.tensor(rows, dtype=torch.float64, device=tokens_BWT.device)

    def _of_output(self, tokens: list[int]) -> float:
        nats, num_words = self._lm.score(tokens)
        return self._weight * nats + self._bonus * num_words

    def _gain(self, prefix: int, parent: int, token: int) -> float:
        heard = self._heard.get(prefix)
        if heard is None:
            heard = self._heard[prefix] = _hear(self._lm, self._heard[parent], token)
        return self._weight * heard.nats + self._bonus * heard.num_words
