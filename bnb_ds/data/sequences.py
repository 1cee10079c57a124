"""From documents to samples, by their lengths alone: which pieces of which documents each sample holds.

``truncate`` makes one sample of each document, its head (the paper). ``chunk`` cuts documents so that every token is
used. ``pack`` cuts them likewise and fills samples with several pieces, which stay sequences of their own: attention
does not cross them, and a sample costs about the same as any other.

None of it is drawn: samples are numbered alike on every rank and in every run. An index takes at most 8 bytes a
document beyond what the shards hold (16 above four thousand million pieces), and is made in one pass over the lengths.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from bnb_ds.data.bin_packing import Pattern, pack_histogram
from bnb_ds.shards.reader import TokenShards

Building = Literal["truncate", "chunk", "pack"]

#: [CLS] and [SEP]
SPECIALS = 2

_SORT_BLOCK = 1 << 18


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
        counts = (-(-lengths // content_length) for lengths in shards.length_blocks())
        self._first = _running_sum(counts, len(shards), at_most=_most_pieces(shards, content_length))

    def __len__(self) -> int:
        return int(self._first[-1])

    def lengths(self, sample_ids: np.ndarray) -> np.ndarray:
        return self.pieces(sample_ids).sizes + SPECIALS

    def pieces(self, sample_ids: np.ndarray) -> Pieces:
        documents = _found(self._first, sample_ids)
        begins = (sample_ids - self._first[documents].astype(np.int64)) * self._content_length
        sizes = np.minimum(self._shards.lengths_of(documents) - begins, self._content_length)
        return Pieces(np.ones(sample_ids.size, dtype=np.int64), sample_ids, documents, begins, sizes)


class Bins:
    """``pack``: samples of at most ``max_length`` tokens, filled with the pieces of `Chunks`.

    All pieces of a document but its last fill a sample each: these are the first samples. The last pieces are packed. A
    bin is known by the pattern it was filled by and its repetition: nothing is stored per bin.
    """

    def __init__(self, shards: TokenShards, max_length: int) -> None:
        self._shards = shards
        self._content_length = content_length = max_length - SPECIALS
        last_sizes = np.empty(len(shards), dtype=np.uint16)
        counts = np.zeros(content_length + 1, dtype=np.int64)

        def full_pieces() -> Iterator[np.ndarray]:
            begin = 0
            for lengths in shards.length_blocks():
                full = (lengths - 1) // content_length
                last = lengths - full * content_length
                counts[:] += np.bincount(last, minlength=counts.size)
                last_sizes[begin : begin + lengths.size] = last
                begin += lengths.size
                yield full

        most = _most_pieces(shards, content_length)
        #: full pieces before each document
        self._first_full = _running_sum(full_pieces(), len(shards), at_most=most)
        self._num_full = int(self._first_full[-1])
        self._by_size = _sorted_places(last_sizes, counts)
        self._lay_out(pack_histogram(counts, max_length, SPECIALS), np.cumsum(counts) - counts)

    def _lay_out(self, patterns: list[Pattern], class_begin: np.ndarray) -> None:
        """Note of each slot of each pattern where its pieces begin among those of one size, and how they follow."""
        used = class_begin.tolist()
        first_bin, first_slot, totals, slot_begin, slot_stride = [self._num_full], [0], [], [], []
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
        lengths = np.full(sample_ids.size, self._content_length + SPECIALS)
        is_packed = sample_ids >= self._num_full
        lengths[is_packed] = self._totals[_found(self._first_bin, sample_ids[is_packed])]
        return lengths

    def pieces(self, sample_ids: np.ndarray) -> Pieces:
        is_packed = sample_ids >= self._num_full
        full, packed = sample_ids[~is_packed], sample_ids[is_packed]
        patterns = _found(self._first_bin, packed)
        per_sample = np.ones(sample_ids.size, dtype=np.int64)
        per_sample[is_packed] = num_slots = self._first_slot[patterns + 1] - self._first_slot[patterns]
        ends = np.cumsum(num_slots)
        slots = np.arange(num_slots.sum()) + np.repeat(self._first_slot[patterns] - (ends - num_slots), num_slots)
        repetitions = np.repeat(packed - self._first_bin[patterns], num_slots)
        is_last = np.repeat(is_packed, per_sample)
        documents, numbers = (np.empty(is_last.size, dtype=np.int64) for _ in range(2))
        documents[is_last] = self._by_size[self._slot_begin[slots] + repetitions * self._slot_stride[slots]]
        documents[~is_last] = _found(self._first_full, full)
        first = self._first_full[documents].astype(np.int64)
        numbers[is_last] = self._first_full[documents[is_last] + 1] - first[is_last]
        numbers[~is_last] = full - first[~is_last]
        begins = numbers * self._content_length
        sizes = np.minimum(self._shards.lengths_of(documents) - begins, self._content_length)
        # Every document before has had its full pieces and a last one: this is the number that `Chunks` gives it.
        return Pieces(per_sample, first + documents + numbers, documents, begins, sizes)


def make_index(sequence: Building, shards: TokenShards, max_length: int) -> SequenceIndex:
    """The index of one split of a shard directory, for sequences of at most ``max_length`` tokens."""
    makers: dict[str, Callable[[], SequenceIndex]] = {
        "truncate": lambda: Heads(shards, max_length - SPECIALS),
        "chunk": lambda: Chunks(shards, max_length - SPECIALS),
        "pack": lambda: Bins(shards, max_length),
    }
    return makers[sequence]()


def _most_pieces(shards: TokenShards, content_length: int) -> int:
    return shards.num_tokens // content_length + len(shards)


def _running_sum(blocks: Iterable[np.ndarray], size: int, at_most: int) -> np.ndarray:
    """Sums of all numbers before each and, at the end, of all: unsigned [size + 1], half as wide where that does."""
    sums = np.zeros(size + 1, dtype=_id_dtype(at_most))
    begin = 0
    for block in blocks:
        np.cumsum(block, out=sums[begin + 1 : begin + 1 + block.size], dtype=sums.dtype)
        sums[begin + 1 : begin + 1 + block.size] += sums[begin]
        begin += block.size
    return sums


def _found(firsts: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """int64, the last place whose first number is not above each of ``numbers``."""
    # Searching for numbers of another type would convert the whole index, at every call.
    return np.searchsorted(firsts, numbers.astype(firsts.dtype), side="right") - 1


def _sorted_places(sizes: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Places of ``sizes`` in the order of their values, equal ones in order: a counting sort in blocks."""
    order = np.empty(sizes.size, dtype=_id_dtype(sizes.size))
    next_place = np.cumsum(counts) - counts
    for begin in range(0, sizes.size, _SORT_BLOCK):
        block = sizes[begin : begin + _SORT_BLOCK]
        by_size = np.argsort(block, kind="stable")
        in_block = np.bincount(block, minlength=counts.size)
        places = np.arange(block.size) + np.repeat(next_place - (np.cumsum(in_block) - in_block), in_block)
        order[places] = by_size + begin
        next_place += in_block
    return order


def _id_dtype(total: int) -> type[np.unsignedinteger]:
    """For numbers up to ``total``: half the memory wherever they allow it."""
    return np.uint32 if total < 2**32 else np.uint64
