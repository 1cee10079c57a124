"""The records that every source yields, and the rule that holds documents out for evaluation."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

DEFAULT_HOLDOUT = 0.01  # share of the documents
HOLDOUT_RULE = (
    "held out if the first 8 bytes of SHA-256(document id in UTF-8), read big-endian, are below fraction * 2**64"
)

SURROGATE = "holds half of a surrogate pair (\\ud800 to \\udfff); mend or remove it"  # reason of a bad record

_BATCH_DOCUMENTS = 1024


@dataclass(frozen=True)
class Document:
    """One source text."""

    id: str  # stable name of the document within its corpus
    text: str
    source: str  # the input it came from, as the manifest names it
    title: str = ""  # where the source has one; part of the text only if the source says so
    version: int = 0  # where ids repeat and the source wants the latest: the highest version wins, then the last read


@dataclass(frozen=True)
class Omitted:
    """A record that makes no document, such as one without abstract. It is counted; its id may supersede another."""

    reason: str  # as the manifest counts it, for example "no abstract"
    id: str = ""
    version: int = 0


@dataclass(frozen=True)
class Deletion:
    """The source withdraws every record of this id that came before."""

    id: str


@dataclass(frozen=True)
class BadRecord:
    """A record that cannot be read. It ends the run, or is counted and listed if bad records are skipped."""

    place: str  # file and line, row or record
    reason: str  # with the way out

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}"


Record = Document | Omitted | Deletion | BadRecord


def is_held_out(document_id: str, fraction: float) -> bool:
    """Whether a document belongs to the held-out split, by a hash of its id alone.

    The answer for a document never changes when the corpus grows or is read in another order, and a larger fraction
    holds out what a smaller one did and more.
    """
    digest = hashlib.sha256(document_id.encode("utf-8")).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


def content_id(text: str) -> str:
    """The id of a document whose source gives it none; equal texts share it, so a split never separates them."""
    return "sha256:" + hashlib.sha256(text.encode("utf-8")).hexdigest()[:32]


def is_encodable(*texts: str) -> bool:
    """Whether strings have a UTF-8 form; half of a surrogate pair, which JSON can spell, has none."""
    try:
        for text in texts:
            text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def batched(documents: Iterable[Document], max_characters: int) -> Iterator[list[Document]]:
    """Lists of documents to encode at once: at most 1,024, closed by the one that reaches ``max_characters``."""
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document.text)
        if len(batch) == _BATCH_DOCUMENTS or characters >= max_characters:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
