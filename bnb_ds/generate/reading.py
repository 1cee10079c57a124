"""How a model reads its sources: the same tokens, lengths and special tokens as in its training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bnb_ds.data.tokenization import vocabulary_size
from bnb_ds.errors import CheckpointError, ConfigError, DataError, nearest
from bnb_ds.generate.open_model import longest_source, refuse_other_directories
from bnb_ds.model.configuration import BnbConfig
from bnb_ds.systems.base import TASK_FILE, System
from bnb_ds.systems.bnb import BnbGenerator
from bnb_ds.systems.model_dir import load_system
from bnb_ds.tasks.codec import SPECIAL_TOKENS, Codec
from bnb_ds.tasks.task import Cut, Task

#: characters of a text that a message shows
_SHOWN = 40


@dataclass(frozen=True)
class SourceReader:
    """Turns texts into the sources of a model.

    Attributes:
        codec: the tokenizers.
        max_length: most tokens of a source, special tokens included.
        task: what the model was fine-tuned for; None: it was only pre-trained.
        special_tokens: which special tokens a text can spell, one of `bnb_ds.tasks.codec.SPECIAL_TOKENS`.
        cut: how two texts are cut that are too long together.
    """

    codec: Codec
    max_length: int
    task: Task | None = None
    special_tokens: str = "none"
    cut: Cut = "longest"

    @classmethod
    def load(cls, directory: Path, special_tokens: str | None = None) -> SourceReader:
        """The reader of a model directory.

        Args:
            directory: a directory that ``bnb-ds export`` wrote, in torch or ONNX format.
            special_tokens: None: ``mask`` for a pre-trained model, ``none`` for a fine-tuned one.

        Raises:
            CheckpointError: ``bnb-ds export`` did not write the directory, files are missing or damaged, or the model
                gives labels.
            ConfigError: a fine-tuned model cannot read special tokens.
        """
        if special_tokens is not None and special_tokens not in SPECIAL_TOKENS:
            raise ConfigError(f"--special-tokens {special_tokens}: {nearest(special_tokens, SPECIAL_TOKENS)}")
        system = load_system(directory) if (directory / TASK_FILE).is_file() else None
        if system is not None:
            _refuse_misfits(directory, system, special_tokens)
        refuse_other_directories(directory, or_onnx=True)
        config = BnbConfig.from_pretrained(directory)
        if system is None:
            reader = cls(Codec.load(directory), longest_source(config), None, special_tokens or "mask")
        else:
            reader = cls(system.codec, system.lengths.source, system.task, cut=system.lengths.cut)
        reader._refuse_another_vocabulary(directory, config)
        return reader

    def check(self, texts: Sequence[str]) -> None:
        """Raise DataError for a text with half a character, or one that is not the two texts that the task needs."""
        for text in texts:
            try:
                text.encode("utf-8")
            except UnicodeEncodeError:
                raise DataError(f"{text[:_SHOWN]!r} holds half of a character: give whole ones, in UTF-8") from None
        if self.task is None or len(self.task.sources) == 1:
            return
        for text in texts:
            first, _, second = text.partition("\t")
            if text.strip() and not (first.strip() and second.strip()):
                raise DataError(
                    f"task {self.task.name} reads two texts ({', '.join(self.task.sources)}) with a tab between them,"
                    f" but {text[:_SHOWN]!r} is one text; add the other"
                )

    def encode(self, texts: Sequence[str]) -> tuple[list[list[int]], list[bool]]:
        """Token ids of each text with its special tokens, and whether it was cut.

        There are no ids for an empty text, nor, in a pre-trained model, for one without tokens. Training had none.

        Raises:
            DataError: as in `check`.
        """
        self.check(texts)
        if self.task is None or len(self.task.sources) == 1:
            parts: list[tuple[str, ...]] = [(text,) for text in texts]
        else:
            parts = [(first, second) for first, _, second in (text.partition("\t") for text in texts)]
        encoded = self.codec.encode_sources(parts, self.max_length, cut=self.cut, special_tokens=self.special_tokens)
        # A task's data may hold texts without tokens, but none without letters.
        are_empty = encoded.are_empty if self.task is None else [not text.strip() for text in texts]
        sources = [[] if empty else ids.tolist() for ids, empty in zip(encoded.tokens, are_empty, strict=True)]
        return sources, encoded.are_cut

    def _refuse_another_vocabulary(self, directory: Path, config: BnbConfig) -> None:
        for half, tokenizer in ((config.encoder, self.codec.source), (config.decoder, self.codec.target)):
            if vocabulary_size(tokenizer) > half.vocab_size:
                name = "decoder" if half is config.decoder else "encoder"
                raise CheckpointError(
                    f"{directory}: its {name} has {half.vocab_size} tokens, but the tokenizer has"
                    f" {vocabulary_size(tokenizer)}; restore the tokenizers of its training"
                )


def _refuse_misfits(directory: Path, system: System, special_tokens: str | None) -> None:
    task = system.task
    if not task.is_generation:
        raise CheckpointError(f"{directory}: was fine-tuned for {task.name}, which has labels; use `bnb-ds predict`")
    if not isinstance(system, BnbGenerator):
        raise CheckpointError(f"{directory}: is a model of kind {system.kind}; use `bnb-ds predict`")
    if special_tokens not in (None, "none"):
        raise ConfigError(
            f"--special-tokens {special_tokens}: {directory} was fine-tuned for {task.name}, without special tokens in"
            " texts; leave it out"
        )
