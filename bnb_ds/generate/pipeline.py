"""`BnbPipeline` generates text from text with an exported model.

pipeline = BnbPipeline.from_pretrained("work/models/xsum", dtype="bf16")
summaries = pipeline(["A long article ...", "Another one ..."])
for output in pipeline.stream(open("articles.txt"), with_scores=True):
    print(output.text, output.score)
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar, overload

from tqdm import tqdm

from bnb_ds.common.hub import ONNX_FILE, model_directory
from bnb_ds.common.memory import return_freed_memory
from bnb_ds.decoding.bad_words import BadWords
from bnb_ds.decoding.ngram_lm import NgramLm
from bnb_ds.decoding.options import DecodeOptions
from bnb_ds.errors import ConfigError
from bnb_ds.generate.engines import DTYPES, CompiledEngine, Engine, OnnxEngine, TorchEngine
from bnb_ds.generate.open_model import choose_device, load_exported
from bnb_ds.generate.reading import SourceReader
from bnb_ds.systems.shown_targets import why_saved_is_not_refined

WINDOW_TEXTS = 4096
WINDOW_CHARACTERS = 1 << 23

T = TypeVar("T")
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Generated:
    """One generated output.

    Attributes:
        text: the output on one line, without special tokens.
        tokens: its token ids, including special tokens.
        score: log-probability in nats, or None if it was not requested.
        num_source_tokens: tokens that the model read, including special tokens; 0 for an empty text, whose output is
            empty too.
        is_truncated: whether the source was cut because it was too long for the model.
    """

    text: str
    tokens: list[int]
    score: float | None
    num_source_tokens: int
    is_truncated: bool


class BnbPipeline:
    """An engine together with the reader of its sources, whose codec also writes its outputs.

    Args:
        engine: runs the model.
        reader: from texts to token ids; its codec turns ids into texts.
        options: decoding options; None: the model's own.
    """

    def __init__(self, engine: Engine, reader: SourceReader, options: DecodeOptions | None = None):
        self.engine = engine
        self.reader = reader
        self.codec = reader.codec
        self.options = options or DecodeOptions.of_model(engine.config)
        engine.check(self.options, with_scores=False)

    @classmethod
    def from_pretrained(
        cls,
        directory: str | PathLike[str],
        *,
        device: str | None = None,
        dtype: str = "fp32",
        compile: bool = False,
        special_tokens: str | None = None,
        bad_words: Sequence[str] = (),
        bad_words_inside: bool = False,
        bad_words_any_case: bool = False,
        lm_path: str | PathLike[str] | None = None,
        **options: Any,
    ) -> BnbPipeline:
        """Load an exported model in torch or ONNX format.

        Args:
            directory: a directory that ``bnb-ds export`` wrote, or OWNER/NAME of one on the Hugging Face hub.
            device: ``cpu``, ``cuda`` or ``cuda:1``; None: a GPU if there is one, else the CPU.
            dtype: ``fp32``, ``bf16``, or ``fp16`` on a GPU. The dtype of an ONNX model is fixed at export.
            compile: use ``torch.compile`` for a few shapes; the first batch of each shape takes long.
            special_tokens: which special tokens the letters of a text can spell: ``none``, ``mask`` ([MASK] alone) or
                ``all``. None: as the model was trained, which is ``mask`` after pre-training and ``none`` after
                fine-tuning.
            bad_words: words that no output holds, however the vocabulary spells them. Those that it cannot spell are
                named in the log.
            bad_words_inside: nor inside longer words.
            bad_words_any_case: nor in upper or lower case.
            lm_path: an n-gram language model (ARPA or KenLM binary) for the beam search.
            options: fields of `DecodeOptions`; None: the model's own.

        Raises:
            CheckpointError: the directory is not an exported model, or the model gives labels.
            ConfigError: settings do not go together, or an optional package is missing.
        """
        directory = model_directory(directory)
        reader = SourceReader.load(directory, special_tokens)
        changes = dict(options)
        engine: Engine
        if (directory / ONNX_FILE).is_file():
            if compile or dtype != "fp32" or device not in (None, "cpu"):
                raise ConfigError(
                    f"{directory}: an ONNX model runs on the CPU with the dtype of its export: leave out --dtype, "
                    "--device and --compile"
                )
            engine = OnnxEngine(directory)
        else:
            place = choose_device(device)
            if dtype not in DTYPES:
                raise ConfigError(_unknown_dtype(dtype, directory))
            if dtype == "fp16" and place.type == "cpu":
                raise ConfigError("--dtype fp16 needs a GPU: use bf16 or fp32 on a CPU")
            model = load_exported(directory, place)
            if compile:
                engine = CompiledEngine(model, dtype)
            else:
                engine = TorchEngine(model, dtype, why_saved_is_not_refined(directory))
        codec = reader.codec
        if bad_words:
            how: dict[str, Any] = {"inside": bad_words_inside, "any_case": bad_words_any_case}
            if codec.spacing is not None:
                how |= {"unknown_texts": codec.spacing.unknown_texts, "joins": codec.spacing.joins}
            banned = BadWords.of(bad_words, codec.target, engine.config.vocab_size, **how)
            changes["bad_words"] = banned or None
            for word in banned.unwritable:
                _LOG.warning("bad word %r: the vocabulary cannot write it, so it is never written anyway", word)
        if lm_path is not None:
            changes["lm"] = NgramLm(lm_path, codec.target_rules(engine.config.vocab_size))
        given = {name: value for name, value in changes.items() if value is not None}
        return cls(engine, reader, DecodeOptions.of(DecodeOptions.of_model(engine.config), given))

    @overload  # a string is an iterable of strings too; the first signature that fits counts
    def __call__(self, texts: str, *, progress: bool = False) -> str: ...  # type: ignore[overload-overlap]

    @overload
    def __call__(self, texts: Iterable[str], *, progress: bool = False) -> list[str]: ...

    def __call__(self, texts: str | Iterable[str], *, progress: bool = False) -> str | list[str]:
        """Return the output of one text, or the list of outputs of several."""
        if isinstance(texts, str):
            return self.generate([texts])[0].text
        return [output.text for output in self.stream(texts, progress=progress)]

    def stream(
        self, texts: Iterable[str], *, with_scores: bool = False, progress: bool = False, window: int = WINDOW_TEXTS
    ) -> Iterator[Generated]:
        """Yield outputs in the order of the texts, with at most one window of them in memory.

        Args:
            texts: any iterable, even an endless one.
            with_scores: compute log-probabilities.
            progress: show a progress bar on standard error.
            window: texts that are sorted by length and batched together.
        """
        with tqdm(disable=not progress, unit=" texts") as bar:
            for part in windows(texts, window, len):
                yield from self.generate(part, with_scores=with_scores)
                return_freed_memory()
                bar.update(len(part))

    def generate(
        self, texts: Sequence[str], *, with_scores: bool = False, options: DecodeOptions | None = None
    ) -> list[Generated]:
        """Generate the outputs of these texts, all in memory at once.

        Args:
            texts: any number of texts.
            with_scores: compute log-probabilities.
            options: replace the pipeline's own options.
        """
        options = options or self.options
        self.engine.check(options, with_scores=with_scores)
        return self.from_sources(*self.encode(texts), options, with_scores=with_scores)

    def from_sources(
        self, sources: list[list[int]], cuts: list[bool], options: DecodeOptions, *, with_scores: bool = False
    ) -> list[Generated]:
        """Generate from the output of `encode`, with options that are already checked."""
        filled = [index for index, source in enumerate(sources) if source]
        outputs = [Generated("", [], None, 0, False)] * len(sources)
        if not filled:
            return outputs
        decoded = self.engine.decode([sources[index] for index in filled], options, with_scores=with_scores)
        written = self.codec.decode([tokens for tokens, _ in decoded])
        for index, (tokens, score), text in zip(filled, decoded, written, strict=True):
            outputs[index] = Generated(text, tokens, score, len(sources[index]), cuts[index])
        return outputs

    def encode(self, texts: Sequence[str]) -> tuple[list[list[int]], list[bool]]:
        """See `bnb_ds.generate.reading.SourceReader.encode`."""
        return self.reader.encode(texts)


def windows(items: Iterable[T], size: int, num_characters: Callable[[T], int]) -> Iterator[list[T]]:
    """Split a stream into windows, to be sorted by length and generated together.

    Args:
        items: texts, or objects that hold one.
        size: items of a window. A window has fewer if they have `WINDOW_CHARACTERS` characters, or at the end.
        num_characters: gives the characters of an item.
    """
    part: list[T] = []
    characters = 0
    for item in items:
        part.append(item)
        characters += num_characters(item)
        if len(part) >= size or characters >= WINDOW_CHARACTERS:
            yield part
            part, characters = [], 0
    if part:
        yield part


def _unknown_dtype(dtype: str, directory: Path) -> str:
    if dtype == "int8":
        export = f"bnb-ds export {shlex.quote(str(directory))} OUTPUT --format onnx --dtype int8"
        return f"--dtype int8 needs ONNX Runtime: run `{export}` and give OUTPUT as the model"
    return f"--dtype {dtype}: give one of: {', '.join(DTYPES)}"
