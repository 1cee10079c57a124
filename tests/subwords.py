"""Small byte-level BPE and SentencePiece tokenizers, trained once for a process."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from data_prep.sources.documents import Document
from data_prep.tokenise.subword_vocab import train_subwords

#: letters with accents, other scripts, punctuation of several kinds
OTHERS = ["naïve “Brüder” über die Straße, déjà vu, «да», 北京大学 の本 ไทย, 한국어! ½ € 😀. “Ça va?” (Oui!)"] * 3


def texts() -> list[str]:
    """Paragraphs of English of the standard library's documentation, and a few of other languages."""
    from pydoc_data.topics import topics

    paragraphs = [" ".join(text.split()) for name in sorted(topics) for text in topics[name].split("\n\n")]
    return [text for text in paragraphs if 200 <= len(text) <= 1000][:120] + OTHERS


def trained(kind: str, vocab_size: int) -> PreTrainedTokenizerFast:
    """A tokenizer of `texts`."""
    documents = (Document(str(i), text, "") for i, text in enumerate(texts()))
    with tempfile.TemporaryDirectory() as directory:
        return train_subwords(documents, Path(directory) / kind, kind=kind, vocab_size=vocab_size)


@functools.cache
def byte_level() -> PreTrainedTokenizerFast:
    """As RoBERTa's. Tests must not change it."""
    return trained("bpe", 600)


@functools.cache
def unigram() -> PreTrainedTokenizerFast:
    """As XLM-R's. Tests must not change it."""
    return trained("unigram", 500)
