"""Several shard directories, read as one. Their documents are numbered through, in the order of the directories."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from bnb_ds.errors import DataError
from bnb_ds.shards.reader import TokenShards


class MixedShards:
    """One split of several shard directories that were made with one tokenizer.

    Args:
        weights: directory -> its weight in the mixture, above 0.
        split: ``"train"`` or ``"heldout"``.

    Attributes:
        parts: the directories, opened.
        weights: of each part.
        directory: of the first part.
        fingerprint: the fingerprints of all parts with their shares.

    Raises:
        DataError: as in `TokenShards`; two directories have different tokenizers, or the same content.
    """

    def __init__(self, weights: Mapping[str, float], split: str) -> None:
        self.parts = [TokenShards(directory, split) for directory in weights]
        self.weights = list(weights.values())
        first = self.parts[0]
        for number, part in enumerate(self.parts):
            if part.tokenizer_hash != first.tokenizer_hash:
                raise DataError(
                    f"data.shards: {part.directory} was made with another tokenizer than {first.directory}; prepare one"
                    " of them again with the other's --tokenizer"
                )
            for other in self.parts[:number]:
                if other.fingerprint == part.fingerprint:
                    raise DataError(
                        f"data.shards: {part.directory} has the same content as {other.directory}; name it once, with"
                        " both weights added"
                    )
        self.directory = first.directory
        shares = (f"{weight / sum(self.weights):.6g}" for weight in self.weights)
        self.fingerprint = " + ".join(
            f"{share} of {part.fingerprint}" for share, part in zip(shares, self.parts, strict=True)
        )
        self._first = np.cumsum([0, *map(len, self.parts)])

    def __len__(self) -> int:
        return int(self._first[-1])

    @property
    def num_tokens(self) -> int:
        """Tokens in this split."""
        return sum(part.num_tokens for part in self.parts)

    @property
    def token_dtype(self) -> np.dtype:
        """Dtype of the tokens on disk."""
        return self.parts[0].token_dtype

    @property
    def vocab_size(self) -> int:
        """Number of ids of the tokenizer."""
        return self.parts[0].vocab_size

    @property
    def special_ids(self) -> dict[str, int]:
        """Ids of ``pad``, ``unk``, ``cls``, ``sep`` and ``mask``."""
        return self.parts[0].special_ids

    @property
    def tokenizer_hash(self) -> str:
        """Content hash of the tokenizer."""
        return self.parts[0].tokenizer_hash

    @property
    def tokenizer_dir(self) -> Path:
        """Directory that holds the first part's copy of the tokenizer."""
        return self.parts[0].tokenizer_dir

    def read(
        self, documents: np.ndarray, begins: np.ndarray, sizes: np.ndarray, out: np.ndarray, places: np.ndarray
    ) -> None:
        """Copy spans of documents into a row of tokens; as `TokenShards.read`."""
        owners = np.searchsorted(self._first, documents, side="right") - 1
        for number in np.unique(owners):
            mine = owners == number
            self.parts[number].read(documents[mine] - self._first[number], begins[mine], sizes[mine], out, places[mine])


#: what pre-training reads
Corpus = TokenShards | MixedShards


def parts_of(corpus: Corpus) -> list[TokenShards]:
    """The directories of a corpus, opened."""
    return corpus.parts if isinstance(corpus, MixedShards) else [corpus]
