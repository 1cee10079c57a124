"""Lengths of the documents of a corpus, and what cutting and padding them would waste."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bnb_ds.common.files import new_file
from bnb_ds.errors import ConfigError, how_to_install
from bnb_ds.shards.reader import TokenShards

SPECIAL_TOKENS_OF_A_SEQUENCE = 2  # [CLS] and [SEP]
_BAR_CHARACTERS = 40


@dataclass(frozen=True)
class Stats:
    """Measures of one split. Lengths are in tokens; shares lie between 0 and 1."""

    lengths: np.ndarray  # int64 [num_documents], without special tokens
    max_length: int  # of a sequence, special tokens included

    @property
    def num_tokens(self) -> int:
        """Tokens of all documents."""
        return int(self.lengths.sum())

    @property
    def pad_share(self) -> float:
        """Share of padding if every document were cut to one sequence and padded."""
        used = np.minimum(self.lengths + SPECIAL_TOKENS_OF_A_SEQUENCE, self.max_length).sum()
        return 1.0 - float(used) / (len(self.lengths) * self.max_length)

    @property
    def cut_share(self) -> float:
        """Share of the corpus that this would throw away."""
        return float(np.maximum(self.lengths - self.room, 0).sum()) / self.num_tokens

    @property
    def room(self) -> int:
        """Tokens of a document that a sequence holds."""
        return self.max_length - SPECIAL_TOKENS_OF_A_SEQUENCE

    @property
    def num_sequences_cut(self) -> int:
        """Sequences if every document were cut to one."""
        return len(self.lengths)

    @property
    def num_sequences_packed(self) -> int:
        """Sequences of full length that hold every token: documents in pieces, pieces back to back."""
        pieces = -(-self.lengths // self.room)
        return int(-(-(self.num_tokens + SPECIAL_TOKENS_OF_A_SEQUENCE * int(pieces.sum())) // self.max_length))

    def histogram(self) -> tuple[np.ndarray, np.ndarray]:
        """Documents in classes of doubling length: counts [n] and edges [n + 1]."""
        top = max(int(self.lengths.max()), 1).bit_length()
        edges = np.concatenate([[0], 2 ** np.arange(top + 1)])
        return np.histogram(self.lengths, bins=edges)[0], edges

    def lines(self) -> list[str]:
        """The report as text."""
        quantiles = np.percentile(self.lengths, [5, 50, 95]).astype(int)
        slots = self.num_sequences_cut * self.max_length
        kept = self.num_tokens - int(self.cut_share * self.num_tokens)
        packed = self.num_sequences_packed
        counts, edges = self.histogram()
        widest = max(int(counts.max()), 1)
        report = [
            f"documents        {len(self.lengths):,}",
            f"tokens           {self.num_tokens:,}",
            f"document length  mean {self.lengths.mean():,.0f}, median {quantiles[1]:,}, 5% to 95% {quantiles[0]:,} to "
            f"{quantiles[2]:,}, longest {self.lengths.max():,} tokens",
            f"cut and padded   to {self.max_length}: {slots:,} slots, {self.pad_share:.1%} of them padding, "
            f"{self.cut_share:.1%} of the tokens thrown away",
            f"packed           {packed * self.max_length:,} slots hold every token: "
            f"{self.num_tokens / packed:.0f} a sequence instead of {kept / len(self.lengths):.0f}",
            "tokens         documents",
        ]
        for count, low, high in zip(counts, edges[:-1], edges[1:], strict=True):
            bar = "#" * round(_BAR_CHARACTERS * int(count) / widest)
            report.append(f"{low:>7,} to {high - 1:>7,}  {count:>9,} {bar}".rstrip())
        return report


def corpus_stats(directory: Path, split: str, max_length: int) -> Stats:
    """Measure one split of a shard directory.

    Raises:
        ConfigError: ``max_length`` leaves no room for text, or the split has no documents.
    """
    if max_length <= SPECIAL_TOKENS_OF_A_SEQUENCE:
        raise ConfigError(f"--max-length must be above {SPECIAL_TOKENS_OF_A_SEQUENCE}, got {max_length}")
    lengths = TokenShards(directory, split).lengths
    if not len(lengths):
        raise ConfigError(f"{directory}: the split {split} has no documents; choose another --split")
    return Stats(lengths, max_length)


def plot(stats: Stats, path: Path, title: str) -> None:
    """Draw the lengths of the documents into a new .png.

    Raises:
        ConfigError: matplotlib is not installed.
        DataError: the file exists, or the disk refuses.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError(f"--png needs matplotlib: {how_to_install('plot')}, or leave it out") from None
    figure = Figure(figsize=(7, 4), dpi=150, layout="constrained")
    axes = figure.subplots()
    bins = np.geomspace(1, max(int(stats.lengths.max()), 2), 80)
    axes.hist(stats.lengths, bins=bins, weights=stats.lengths / stats.num_tokens, color="#4477aa")
    axes.axvline(stats.room, color="#cc3311", linewidth=1)
    axes.set_xscale("log")
    axes.set_xlabel("tokens of a document")
    axes.set_ylabel("share of all tokens")
    axes.set_title(
        f"{title}: cut at {stats.max_length} and padded, {stats.pad_share:.0%} is padding and "
        f"{stats.cut_share:.0%} of the tokens is lost",
        fontsize=9,
    )
    with new_file(path) as file:
        figure.savefig(file, format="png", metadata={"Software": None})
