"""Training byte-level BPE and SentencePiece (Unigram) vocabularies, with the special tokens of RoBERTa and XLM-R.

The trainers are those of ``tokenizers``. Byte-level BPE is the same from run to run, because its alphabet, all bytes,
gets its ids before the trainer starts. The Unigram trainer adds up its numbers in an order that it draws, so that
scores differ in the fourth digit from run to run, and with them the order of equal tokens.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from bnb_ds.common.files import new_directory
from bnb_ds.data.tokenization import load_tokenizer, save_tokenizer
from bnb_ds.errors import BnbError, ConfigError, DataError
from data_prep.sources.documents import Document

#: what can be trained here
SUBWORD_KINDS = ("bpe", "unigram")

_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
_MIN_COUNT = 2  # of a pair; one occurrence is too few to learn from


def train_subwords(
    documents: Iterable[Document],
    directory: str | os.PathLike[str],
    *,
    kind: str,
    vocab_size: int,
    lowercase: bool = False,
) -> PreTrainedTokenizerFast:
    """Train a vocabulary and save it as a directory with ``tokenizer.json``.

    Args:
        documents: the corpus; every distinct word is held in memory.
        directory: where to save the tokenizer; new or empty.
        kind: one of `SUBWORD_KINDS`.
        vocab_size: most tokens, special tokens included; a small corpus gives fewer.
        lowercase: make a tokenizer that lowercases text and strips accents.

    Returns:
        The tokenizer that was saved.

    Raises:
        ConfigError: ``vocab_size`` does not hold the special tokens and the characters of the corpus.
        DataError: the corpus has no text, ``directory`` exists, or reading or writing fails; nothing is left then.
    """
    with new_directory(directory) as temporary:
        make = _byte_level if kind == "bpe" else _unigram
        backend = make(_texts(documents), vocab_size, lowercase)
        first, last = _SPECIAL[0], _SPECIAL[2]
        backend.post_processor = processors.TemplateProcessing(
            single=f"{first} $A {last}",
            pair=f"{first} $A {last} {last} $B {last}",
            special_tokens=[(token, backend.token_to_id(token)) for token in (first, last)],
        )
        backend.add_special_tokens(list(_SPECIAL))
        backend.save(str(temporary / "tokenizer.json"))
        save_tokenizer(load_tokenizer(temporary), temporary)
    return load_tokenizer(directory)


def _texts(documents: Iterable[Document]) -> Iterator[str]:
    """The texts that hold anything.

    Raises:
        DataError: there is none.
    """
    found = False
    for document in documents:
        if document.text.strip():
            found = True
            yield document.text
    if not found:
        raise DataError("the corpus holds no words to train a vocabulary on; choose another --input")


def _byte_level(texts: Iterator[str], vocab_size: int, lowercase: bool) -> Tokenizer:
    """As RoBERTa's: words keep the space before them, and every byte is a token."""
    fixed = [*_SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    if vocab_size < len(fixed):
        raise ConfigError(f"--vocab-size {vocab_size} is too small for all bytes; use at least {len(fixed)}")
    tokenizer = Tokenizer(models.BPE())
    if lowercase:
        tokenizer.normalizer = normalizers.Sequence(_lowercasing())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    # The trainer gives what it takes for special tokens the first ids, in this order.
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, min_frequency=_MIN_COUNT, special_tokens=fixed, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    made = Tokenizer(models.BPE(model["vocab"], [tuple(pair) for pair in model["merges"]]))
    if lowercase:
        made.normalizer = tokenizer.normalizer
    made.pre_tokenizer, made.decoder = tokenizer.pre_tokenizer, decoders.ByteLevel()
    return made


def _unigram(texts: Iterator[str], vocab_size: int, lowercase: bool) -> Tokenizer:
    """As XLM-R's: words between spaces, with ``▁`` in the place of the space."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), *(_lowercasing() if lowercase else [])])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    tokenizer.decoder = decoders.Metaspace()
    characters: set[str] = set()
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size, special_tokens=list(_SPECIAL), unk_token=_SPECIAL[3], show_progress=False
    )
    try:
        tokenizer.train_from_iterator(_noted(texts, tokenizer.normalizer, characters), trainer)
    except BnbError:
        raise
    except Exception as error:  # tokenizers raises bare Exception
        if "not large enough" not in str(error):
            raise
        raise ConfigError(
            f"--vocab-size {vocab_size} is too small for the {len(characters)} characters of the corpus; "
            f"use at least {len(_SPECIAL) + len(characters)}"
        ) from None
    return tokenizer


def _noted(texts: Iterator[str], normalizer: normalizers.Normalizer, characters: set[str]) -> Iterator[str]:
    """The texts; the characters of their words are noted on the way."""
    for text in texts:
        characters.update(normalizer.normalize_str(text))
        yield text
    characters.difference_update([character for character in characters if character.isspace()])
    characters.add("▁")


def _lowercasing() -> list[normalizers.Normalizer]:
    return [normalizers.NFD(), normalizers.Lowercase(), normalizers.StripAccents()]
