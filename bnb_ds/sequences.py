"""From documents to samples, by their lengths alone: which pieces of which documents each sample holds.

``truncate`` makes one sample of each document, its head (the paper). ``chunk`` cuts documents so that every token is
used. ``pack`` cuts them likewise and fills samples with several pieces, which stay sequences of their own: attention
does not cross them, and a sample costs about the same as any other.

None of it is drawn: samples are numbered alike on every rank and in every run. An index takes at most 8 bytes a
document or piece beyond what the shards hold, and is made in one or two passes over the lengths.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from bnb_ds.bin_packing import pack_histogram
from bnb_ds.shards import TokenShards

Building = Literal["truncate", "chunk", "pack"]

#: [CLS] and [SEP]
SPECIALS = 2


@dataclass(frozen=True, eq=False)
class Pieces:
    """Spans of documents, each a sequence; P of them in B samples.

    Attributes:
        per_sample: int64 [B], sequences of each sample; their pieces lie in the order of the samples.
        ids: int64 [P], a number of each piece that no other piece has.
        documents: int64 [P].
        begins: int64 [P], first token within the document.
        sizes: int64 [P], tokens.
    """

    per_sample: np.ndarray
    ids: np.ndarray
    documents: np.ndarray
    begins: np.ndarray
    sizes: np.ndarray


class SequenceIndex(Protocol):
    """What every way of building samples offers."""

    def __len__(self) -> int:
        """Samples."""

    def lengths(self, sample_ids: np.ndarray) -> np.ndarray:
        """int64 [B], tokens of samples, [CLS] and [SEP] of every sequence included."""

    def pieces(self, sample_ids: np.ndarray) -> Pieces:
        """What the samples hold."""


class Heads:
    """``truncate``: the first tokens of each document."""

    def __init__(self, shards: TokenShards, content_length: int) -> None:
        self._shards = shards
        self._content_length = content_length

    def __len__(self) -> int:
        return len(self._shards)

    def lengths(self, sample_ids: np.ndarray) -> np.ndarray:
        return self._sizes(sample_ids) + SPECIALS

    def pieces(self, sample_ids: np.ndarray) -> Pieces:
        zeros = np.zeros(sample_ids.size, dtype=np.int64)
        return Pieces(zeros + 1, sample_ids, sample_ids, zeros, self._sizes(sample_ids))

    def _sizes(self, sample_ids: np.ndarray) -> np.ndarray:
        return np.minimum(self._shards.lengths_of(sample_ids), self._content_length)


class Chunks:
    """``chunk``: each document in as many pieces as it takes; pieces are numbered through the documents."""

    def __init__(self, shards: TokenShards, content_length: int) -> None:
        self._shards = shards
        self._content_length = content_length
        counts = np.zeros(len(shards) + 1, dtype=np.uint32)  # of chunks: never more than 2**32 of one document
        begin = 1
        for lengths in shards.length_blocks():
            counts[begin : begin + lengths.size] = -(-lengths // content_length)
            begin += lengths.size
        total = int(counts.sum(dtype=np.uint64))
        self._first = np.cumsum(counts, dtype=_id_dtype(total))
        self._total = total

    def __len__(self) -> int:
        return self._total

    def lengths(self, sample_ids: np.ndarray) -> np.ndarray:
        return self.pieces(sample_ids).sizes + SPECIALS

    def pieces(self, sample_ids: np.ndarray) -> Pieces:
        # Searching for a number of another type would convert the whole index, at every call.
        documents = np.searchsorted(self._first, sample_ids.astype(self._first.dtype), side="right") - 1
        begins = (sample_ids - self._first[documents].astype(np.int64)) * self._content_length
        sizes = np.minimum(self._shards.lengths_of(documents) - begins, self._content_length)
        return Pieces(np.ones(sample_ids.size, dtype=np.int64), sample_ids, documents, begins, sizes)


class Bins:
    """``pack``: samples of at most ``max_length`` tokens, filled with pieces of `Chunks`.

    A bin is known by the pattern it was filled by and its repetition: nothing is stored per bin.
    """

    def __init__(self, shards: TokenShards, max_length: int) -> None:
        self._content_length = max_length - SPECIALS
        self._chunks = Chunks(shards, self._content_length)
        counts = np.zeros(self._content_length + 1, dtype=np.int64)
        for lengths in shards.length_blocks():
            counts += np.bincount(self._piece_sizes(lengths), minlength=counts.size)
        class_begin = np.cumsum(counts) - counts
        self._by_size = _grouped(map(self._piece_sizes, shards.length_blocks()), class_begin, len(self._chunks))
        self._lay_out(pack_histogram(counts, max_length, SPECIALS), class_begin)

    def _lay_out(self, patterns: list, class_begin: np.ndarray) -> None:
        """Note of each slot of each pattern where its pieces begin among those of one size, and how they follow."""
        used = class_begin.copy()
        first_bin, first_slot, totals, slot_begin, slot_stride = [0], [0], [], [], []
        for pattern in patterns:
            for size, copies in pattern.contents:
                slot_begin.extend(range(used[size], used[size] + copies))
                slot_stride.extend([copies] * copies)
                used[size] += pattern.repetitions * copies
            totals.append(sum((size + SPECIALS) * copies for size, copies in pattern.contents))
            first_bin.append(first_bin[-1] + pattern.repetitions)
            first_slot.append(len(slot_begin))
        self._first_bin, self._first_slot = np.array(first_bin), np.array(first_slot)
        self._totals = np.array(totals, dtype=np.int64)
        self._slot_begin, self._slot_stride = (np.array(x, dtype=np.int64) for x in (slot_begin, slot_stride))

    def __len__(self) -> int:
        return int(self._first_bin[-1])

    def lengths(self, sample_ids: np.ndarray) -> np.ndarray:
        return self._totals[self._patterns(sample_ids)]

    def pieces(self, sample_ids: np.ndarray) -> Pieces:
        patterns = self._patterns(sample_ids)
        per_sample = self._first_slot[patterns + 1] - self._first_slot[patterns]
        ends = np.cumsum(per_sample)
        slots = np.arange(ends[-1]) + np.repeat(self._first_slot[patterns] - (ends - per_sample), per_sample)
        repetitions = np.repeat(sample_ids - self._first_bin[patterns], per_sample)
        ids = self._by_size[self._slot_begin[slots] + repetitions * self._slot_stride[slots]].astype(np.int64)
        pieces = self._chunks.pieces(ids)
        return Pieces(per_sample, ids, pieces.documents, pieces.begins, pieces.sizes)

    def _patterns(self, sample_ids: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._first_bin, sample_ids, side="right") - 1

    def _piece_sizes(self, lengths: np.ndarray) -> np.ndarray:
        """Sizes of the pieces of documents, in order: uint16."""
        counts = -(-lengths // self._content_length)
        sizes = np.full(int(counts.sum()), self._content_length, dtype=np.uint16)
        sizes[np.cumsum(counts) - 1] = lengths - (counts - 1) * self._content_length
        return sizes


def make_index(sequence: Building, shards: TokenShards, max_length: int) -> SequenceIndex:
    """The index of one split of a shard directory, for sequences of at most ``max_length`` tokens."""
    makers: dict[str, Callable[[], SequenceIndex]] = {
        "truncate": lambda: Heads(shards, max_length - SPECIALS),
        "chunk": lambda: Chunks(shards, max_length - SPECIALS),
        "pack": lambda: Bins(shards, max_length),
    }
    return makers[sequence]()


def _grouped(blocks: map, class_begin: np.ndarray, total: int) -> np.ndarray:
    """Piece ids in the order of their sizes, equal ones in order: a counting sort in blocks, unsigned [total]."""
    order = np.empty(total, dtype=_id_dtype(total))
    next_place = class_begin.copy()
    first_id = 0
    for sizes in blocks:
        by_size = np.argsort(sizes, kind="stable")
        counts = np.bincount(sizes, minlength=class_begin.size)
        begin_in_block = np.cumsum(counts) - counts
        places = np.arange(sizes.size) + np.repeat(next_place - begin_in_block, counts)
        order[places] = by_size + first_id
        next_place += counts
        first_id += sizes.size
    return order


def _id_dtype(total: int) -> type[np.unsignedinteger]:
    """For numbers up to ``total``: half the memory wherever they allow it."""
    return np.uint32 if total < 2**32 else np.uint64
