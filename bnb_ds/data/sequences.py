"""Says which pieces of which documents each sample holds, from the lengths of the documents.

``truncate`` makes one sample of each document, its first tokens, as in the paper. ``chunk`` cuts documents into pieces,
so that every token is used. ``pack`` cuts them in the same way and fills each sample with several pieces. Pieces stay
separate sequences, which do not attend to each other, and all samples cost about the same.

Nothing here is random: samples have the same numbers on every rank and in every run. An index takes at most 8 bytes per
document in addition to the shards' own offsets (16 bytes above 2**32 pieces). It is made in one pass over the lengths.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from bnb_ds.data.bin_packing import Pattern, pack_histogram
from bnb_ds.shards.mixed import Corpus, MixedShards
from bnb_ds.shards.reader import TokenShards

Building = Literal["truncate", "chunk", "pack"]

#: [CLS] and [SEP]
SPECIALS = 2

_SORT_BLOCK = 1 << 18


@dataclass(frozen=True, eq=False)
class Pieces:
    """The P pieces of B samples. Each is a span of a document, and becomes one sequence.

    Attributes:
        per_sample: int64 [B], number of pieces of each sample. Pieces are in the order of the samples.
        ids: int64 [P], a unique number of each piece.
        documents: int64 [P], the document of each piece.
        begins: int64 [P], index of its first token in the document.
        sizes: int64 [P], its number of tokens.
    """

    per_sample: np.ndarray
    ids: np.ndarray
    documents: np.ndarray
    begins: np.ndarray
    sizes: np.ndarray


class SequenceIndex(Protocol):
    """The interface of all ways to build samples."""

    def __len__(self) -> int:
        """Number of samples."""

    def lengths(self, sample_ids: np.ndarray) -> np.ndarray:
        """int64 [B], tokens of each sample, [CLS] and [SEP] of every sequence included."""

    def pieces(self, sample_ids: np.ndarray) -> Pieces:
        """The pieces of these samples."""


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
    """``chunk``: each document is cut into pieces, which are numbered from the first document to the last."""

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

    Every piece of a document except its last fills a whole sample. These samples come first. The last pieces are packed
    into bins, one sample each. A bin is computed from its pattern and its number among the pattern's repetitions, so
    nothing is stored per bin.
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
        """Store for each slot of each pattern where its pieces are among the pieces of one size: the first, and the
        step from one repetition to the next.
        """
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
        # Each earlier document has its full pieces and a last one, so this is the number that `Chunks` gives the piece.
        return Pieces(per_sample, first + documents + numbers, documents, begins, sizes)


class JoinedIndex:
    """The indices of several directories, whose documents, samples and pieces are numbered through.

    No sample holds pieces of two directories.
    """

    def __init__(self, sequence: Building, shards: MixedShards, max_length: int) -> None:
        self._parts = [make_index(sequence, part, max_length) for part in shards.parts]
        self.sizes = [len(part) for part in self._parts]
        self._first_sample = np.cumsum([0, *self.sizes])
        self._first_document = np.cumsum([0, *map(len, shards.parts)])
        most = [_most_pieces(part, max_length - SPECIALS) for part in shards.parts]
        self._first_piece = np.cumsum([0, *most])

    def __len__(self) -> int:
        return int(self._first_sample[-1])

    def lengths(self, sample_ids: np.ndarray) -> np.ndarray:
        lengths = np.empty(sample_ids.size, dtype=np.int64)
        for number, mine in self._by_part(sample_ids):
            lengths[mine] = self._parts[number].lengths(sample_ids[mine] - self._first_sample[number])
        return lengths

    def pieces(self, sample_ids: np.ndarray) -> Pieces:
        found, samples = [], []
        for number, mine in self._by_part(sample_ids):
            own = self._parts[number].pieces(sample_ids[mine] - self._first_sample[number])
            found.append(
                Pieces(
                    own.per_sample,
                    own.ids + self._first_piece[number],
                    own.documents + self._first_document[number],
                    own.begins,
                    own.sizes,
                )
            )
            samples.append(np.repeat(np.flatnonzero(mine), own.per_sample))
        per_sample = np.empty(sample_ids.size, dtype=np.int64)
        for pieces, (_, mine) in zip(found, self._by_part(sample_ids), strict=True):
            per_sample[mine] = pieces.per_sample
        order = np.argsort(np.concatenate([np.zeros(0, dtype=np.int64), *samples]), kind="stable")
        rows = ("ids", "documents", "begins", "sizes")
        empty = np.zeros(0, dtype=np.int64)
        ids, documents, begins, sizes = (
            np.concatenate([empty, *(getattr(pieces, name) for pieces in found)])[order] for name in rows
        )
        return Pieces(per_sample, ids, documents, begins, sizes)

    def _by_part(self, sample_ids: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        owners = _found(self._first_sample, sample_ids)
        for number in np.unique(owners).tolist():
            yield number, owners == number


def make_index(sequence: Building, shards: Corpus, max_length: int) -> SequenceIndex:
    """The index of one split of a corpus, for sequences of at most ``max_length`` tokens."""
    if isinstance(shards, MixedShards):
        return JoinedIndex(sequence, shards, max_length)
    makers: dict[str, Callable[[], SequenceIndex]] = {
        "truncate": lambda: Heads(shards, max_length - SPECIALS),
        "chunk": lambda: Chunks(shards, max_length - SPECIALS),
        "pack": lambda: Bins(shards, max_length),
    }
    return makers[sequence]()


def _most_pieces(shards: TokenShards, content_length: int) -> int:
    return shards.num_tokens // content_length + len(shards)


def _running_sum(blocks: Iterable[np.ndarray], size: int, at_most: int) -> np.ndarray:
    """The sum of all numbers before each number, then the total: unsigned [size + 1], 32 bits wide if ``at_most``
    allows.
    """
    sums = np.zeros(size + 1, dtype=_id_dtype(at_most))
    begin = 0
    for block in blocks:
        np.cumsum(block, out=sums[begin + 1 : begin + 1 + block.size], dtype=sums.dtype)
        sums[begin + 1 : begin + 1 + block.size] += sums[begin]
        begin += block.size
    return sums


def _found(firsts: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """int64, for each of ``numbers`` the last place in ``firsts`` whose value is not above it."""
    # With numbers of another dtype, searchsorted would convert the whole index at every call.
    return np.searchsorted(firsts, numbers.astype(firsts.dtype), side="right") - 1


def _sorted_places(sizes: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Places of ``sizes`` sorted by value, with equal values in their order. This is a counting sort in blocks."""
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
    """The smallest dtype for numbers up to ``total``."""
    return np.uint32 if total < 2**32 else np.uint64
