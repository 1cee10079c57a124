"""Training a WordPiece vocabulary.

The trainer of ``tokenizers`` gives other tokens, and other ids to equal tokens, from run to run: it breaks ties by ids,
and gives ids to characters inside words in the order of a randomly seeded hash map. Here the characters are settled
before the trainer starts, and with them every tie, so that one corpus gives one vocabulary.
"""

from __future__ import annotations

import os
import string
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import BertTokenizerFast

from bnb_ds.common.files import new_directory
from bnb_ds.data.tokenization import SPECIAL_TOKEN_TEXTS, save_tokenizer, tokenizer_from_vocabulary
from bnb_ds.errors import ConfigError, DataError
from data_prep.sources.documents import Document

_CONTINUATION = "##"
_MAX_WORD_CHARACTERS = 100  # BERT makes longer words [UNK] unread
_MIN_COUNT = 2  # of a character or a pair; one occurrence is too few to learn from
_FED_AT_ONCE = 1000  # repetitions of a word in one string for the trainer


def train_vocabulary(
    documents: Iterable[Document],
    directory: str | os.PathLike[str],
    *,
    vocab_size: int,
    lowercase: bool = False,
) -> BertTokenizerFast:
    """Train a WordPiece vocabulary and save it as a BertTokenizerFast directory.

    Memory holds every distinct word, so give a sample of a very large corpus.

    Args:
        documents: the corpus.
        directory: where to save the tokenizer; new or empty.
        vocab_size: most tokens, special tokens included; a small corpus gives fewer.
        lowercase: make an uncased tokenizer, which lowercases text and strips accents.

    Returns:
        The tokenizer that was saved.

    Raises:
        ConfigError: ``vocab_size`` does not hold the special tokens and the characters of the corpus.
        DataError: the corpus has no text, ``directory`` exists, or reading or writing fails; nothing is left then.
    """
    with new_directory(directory) as temporary:
        word_counts = count_words((document.text for document in documents), lowercase=lowercase)
        if not word_counts:
            raise DataError("the corpus holds no words to train a vocabulary on; choose another --input")
        tokens = learn_tokens(word_counts, vocab_size)
        tokenizer = tokenizer_from_vocabulary(tokens, lowercase=lowercase, name=Path(directory).name)
        save_tokenizer(tokenizer, temporary)
    return tokenizer


def count_words(texts: Iterable[str], *, lowercase: bool) -> Counter[str]:
    """Count the words that BERT's normalizer and pre-tokenizer make of the texts."""
    normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    spaced = _SpacedPunctuation()
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(normalizer.normalize_str(text).translate(spaced).split())
    return Counter({word: count for word, count in counts.items() if len(word) <= _MAX_WORD_CHARACTERS})


def learn_tokens(word_counts: Counter[str], vocab_size: int) -> list[str]:
    """The vocabulary in order of id: special tokens, characters, characters inside words, word pieces as merged.

    Raises:
        ConfigError: ``vocab_size`` does not hold all but the last.
    """
    alphabet = _alphabet(word_counts, limit=max(1000, vocab_size // 4))
    # The trainer would drop an unknown character and learn from the rest of the word, which is no word of the corpus.
    kept = set(alphabet)
    words = {word: word_counts[word] for word in sorted(word_counts) if kept.issuperset(word)}
    inside = sorted({character for word in words for character in word[1:]})
    fixed = [*SPECIAL_TOKEN_TEXTS, *alphabet, *(_CONTINUATION + character for character in inside)]
    if vocab_size < len(fixed):
        raise ConfigError(
            f"--vocab-size {vocab_size} is too small for the {len(alphabet)} characters of the corpus; "
            f"use at least {len(fixed)}"
        )
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=_MIN_COUNT,
        special_tokens=fixed,  # the trainer gives these the first ids, in this order
        continuing_subword_prefix=_CONTINUATION,
        show_progress=False,
    )
    tokenizer = Tokenizer(models.WordPiece(unk_token=SPECIAL_TOKEN_TEXTS[1]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.train_from_iterator(_repeated(words), trainer)
    vocabulary = tokenizer.get_vocab()
    return sorted(vocabulary, key=vocabulary.__getitem__)


class _SpacedPunctuation(dict[int, str]):
    """A table for ``str.translate`` that puts spaces around what BERT splits off: ASCII signs, Unicode punctuation."""

    def __missing__(self, codepoint: int) -> str:
        character = chr(codepoint)
        is_split = character in string.punctuation or unicodedata.category(character).startswith("P")
        self[codepoint] = f" {character} " if is_split else character
        return self[codepoint]


def _alphabet(word_counts: Counter[str], limit: int) -> list[str]:
    """The ``limit`` most frequent characters, in code point order; ties go to the lower code point."""
    counts: Counter[str] = Counter()
    for word, count in word_counts.items():
        for character in word:
            counts[character] += count
    frequent = [character for character, count in counts.items() if count >= _MIN_COUNT]
    return sorted(sorted(frequent, key=lambda character: (-counts[character], character))[:limit])


def _repeated(words: dict[str, int]) -> Iterator[str]:
    """Every word as often as it occurs, in strings of bounded length: the trainer takes text, not counts."""
    for word, count in words.items():
        while count > 0:
            yield " ".join([word] * min(count, _FED_AT_ONCE))
            count -= _FED_AT_ONCE
