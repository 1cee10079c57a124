"""Programs that tokenise. All give the ids of the tokenizer itself.

Most tokenizers work word by word, so an engine may tokenise each distinct word once, or be another program altogether.
A program of others must first give the tokenizer's ids for every code point of Unicode (:func:`first_fault`). Every
engine must also do so for the beginning of every part of the actual input (:meth:`Candidate.prove`). An engine that
differs, or that cannot be loaded, is passed over, and the user is told.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Protocol

import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from bnb_ds.data.tokenization import plain_backend
from bnb_ds.errors import ConfigError, how_to_install
from bnb_ds.version import __version__ as VERSION
from data_prep.tokenise.names import ENGINE_NAMES
from data_prep.tokenise.spaced_words import SpacedWordEngine, cuts_at_spaces
from data_prep.tokenise.words import WordEngine

_PIECE_CHARACTERS = 1 << 20

_SPACE_BEHIND = re.compile(r"(?<=\S) ")
_CODE_POINTS = 0x110000
_PROVEN_AT_ONCE = 1 << 14
_PROVEN_IN_A_ROW = 64

PROOF_CHARACTERS = 3 << 14  # from the beginning of each part, to prove an engine on; takes the tokenizer some 15 ms


@dataclass(frozen=True)
class Ragged:
    """Token ids of a batch of documents: document ``i`` is ``ids[offsets[i]:offsets[i + 1]]``."""

    ids: np.ndarray  # unsigned integers [num_tokens]
    offsets: np.ndarray  # integers [num_documents + 1]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        return self.ids[self.offsets[index] : self.offsets[index + 1]]


class Engine(Protocol):
    """Encodes documents whole and without special tokens; a text that spells ``[MASK]`` is encoded as text."""

    name: str
    packages: Sequence[str]  # whose releases decide the ids
    is_foreign: bool  # a program of others: it has to give the right ids for every code point before it is used

    def __call__(self, texts: Sequence[str]) -> Ragged:
        """Token ids of each text; of length 0 for a text without tokens."""


class TokenizersEngine:
    """The tokenizer's own Rust code: the reference that the others are held to."""

    name = "tokenizers"
    packages = ("tokenizers",)
    is_foreign = False

    def __init__(self, backend: Tokenizer) -> None:
        self._backend = backend

    def __call__(self, texts: Sequence[str]) -> Ragged:
        """See :class:`Engine`."""
        encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        rows = [np.array(encoding.ids, dtype=np.uint32) for encoding in encodings]
        return _ragged(rows)


class WordsEngine:
    """A dictionary of words kept in pyarrow and NumPy; see :mod:`data_prep.tokenise.words` and ``spaced_words``."""

    name = "words"
    packages = ("bnb_ds", "tokenizers")
    is_foreign = False  # every word that is not plain ASCII gets its ids from the tokenizer itself

    def __init__(self, backend: Tokenizer) -> None:
        is_wordpiece = json.loads(backend.to_str())["model"]["type"] == "WordPiece"
        self._words = (WordEngine if is_wordpiece else SpacedWordEngine)(backend)

    def __call__(self, texts: Sequence[str]) -> Ragged:
        """See :class:`Engine`."""
        return Ragged(*self._words.encode(texts))


class NanotokenEngine:
    """The optional package ``nanotoken``."""

    name = "nanotoken"
    packages = ("nanotoken",)
    is_foreign = True

    def __init__(self, backend: Tokenizer) -> None:
        import nanotoken

        self._tokenizer = nanotoken.Tokenizer.from_json(_without_special_tokens(backend))

    def __call__(self, texts: Sequence[str]) -> Ragged:
        """See :class:`Engine`."""
        found = self._tokenizer.encode_batch(list(texts), add_special_tokens=False, parallel=False)
        return Ragged(found.ids, found.offsets)


class InPieces:
    """An engine that is given no more than about a million characters of a document at once, to bound its memory.

    A space behind a character ends a word whatever follows, so the ids of the pieces are the ids of the whole. A
    tokenizer of which this is not known, or with added tokens, which may hold spaces, is given whole documents.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.name = engine.name

    def __call__(self, texts: Sequence[str]) -> Ragged:
        """See :class:`Engine`."""
        if all(len(text) <= _PIECE_CHARACTERS for text in texts):
            return self._engine(texts)
        rows = []
        for text in texts:
            pieces = [self._engine([piece]).ids for piece in _pieces(text)]
            rows.append(np.concatenate(pieces) if len(pieces) > 1 else pieces[0])
        return _ragged(rows)


class EngineFault(Exception):
    """An engine cannot be used; says in one line why."""


class WrongIds(EngineFault):
    """An engine gave other ids than the tokenizer; says in one line where. What else it made is not to be trusted."""


class Candidate:
    """An engine beside the tokenizer whose ids it must give.

    Args:
        name: what it is asked for by.
        engine: the engine.
        reference: the tokenizer itself; as ``engine``, it needs no proof.
        whole: give it whole documents; otherwise long ones go to it :class:`in pieces <InPieces>`.

    Attributes:
        packages: the releases of the packages whose code decides the ids, by name.
    """

    def __init__(self, name: str, engine: Engine, reference: TokenizersEngine, whole: bool) -> None:
        self.name = name
        self._engine = engine
        self._reference = reference
        self._encode = engine if whole else InPieces(engine)
        self.packages = {package: _release(package) for package in engine.packages}

    def __call__(self, texts: Sequence[str]) -> Ragged:
        """See :class:`Engine`."""
        return self._encode(texts)

    def prove(self, texts: Sequence[str], place: str) -> None:
        """Encode texts and compare every id with the tokenizer's.

        Raises:
            WrongIds: an id differs; ``place`` says what the texts are of.
            EngineFault: the engine fails.
        """
        if self._engine is self._reference:
            return
        try:
            found = self._engine(texts)
        except Exception as error:  # a young package may fail in any way it likes
            raise EngineFault(f"fails on {place} ({_one_line(error)})") from None
        expected = self._reference(texts)
        for index in range(len(expected)):
            if not np.array_equal(found[index], expected[index]):
                raise WrongIds(f"other ids than the tokenizer's for document {index + 1} of {place}")


ENGINES: dict[str, Callable[[Tokenizer], Engine]] = {
    kind.name: kind for kind in (NanotokenEngine, WordsEngine, TokenizersEngine)
}


def first_fault(engine: Engine, reference: TokenizersEngine) -> str | None:
    """What is wrong with an engine's ids over all of Unicode; None if nothing is. Takes some ten seconds.

    Every code point is encoded between spaces, between letters and before a combining mark, and every assigned one
    also as a whole text.
    """
    for begin in range(0, _CODE_POINTS, _PROVEN_AT_ONCE):
        codes = range(begin, begin + _PROVEN_AT_ONCE)
        characters = [chr(code) for code in codes if not 0xD800 <= code < 0xE000]  # halves of pairs are no text
        rows = [characters[i : i + _PROVEN_IN_A_ROW] for i in range(0, len(characters), _PROVEN_IN_A_ROW)]
        texts = [" ".join(f"{c} a{c}b {c}\u0301" for c in row) for row in rows]
        texts += [c for c in characters if unicodedata.category(c) != "Cn"]
        try:
            found = engine(texts)
        except Exception as error:  # a young package may fail in any way it likes
            return f"fails on code points from U+{begin:04X} on ({_one_line(error)})"
        expected = reference(texts)
        for index, text in enumerate(texts):
            if not np.array_equal(found[index], expected[index]):
                return f"other ids than the tokenizer's for code points from U+{ord(text[0]):04X} on"
    return None


def candidates(
    tokenizer: PreTrainedTokenizerFast, name: str, say: Callable[[str], None] = lambda line: None
) -> Iterator[Candidate]:
    """The engines to try, one after the other until one proves itself; the last is the tokenizer itself.

    Args:
        tokenizer: what decides the ids.
        name: one of `data_prep.tokenise.names.ENGINE_NAMES`; ``"auto"`` gives all that are installed, fastest first.
        say: receives one line for each engine that was asked for, or found, and cannot be tried, and one if nothing
            that was asked for is left.

    Raises:
        ConfigError: there is no engine of that name, or it is not installed.
    """
    if name not in ENGINE_NAMES:
        raise ConfigError(f"--engine must be one of {', '.join(ENGINE_NAMES)}, got {name!r}")
    backend = plain_backend(tokenizer)
    reference = TokenizersEngine(backend)
    state = json.loads(backend.to_str())
    is_wordpiece = state["model"]["type"] == "WordPiece"
    whole = _has_added_tokens(backend) or not (is_wordpiece or cuts_at_spaces(state))
    for asked in ENGINES if name == "auto" else (name,):
        if asked == reference.name:
            yield Candidate(asked, reference, reference, whole)
            return
        try:
            engine = ENGINES[asked](backend)
        except ImportError:
            if name == "auto":
                continue
            raise ConfigError(f"--engine {name}: not installed; {how_to_install('fast')}, or choose another") from None
        except Exception as error:  # a young package may refuse a tokenizer in any way it likes
            say(f"engine {asked}: refuses this tokenizer ({_one_line(error)}); not used")
            continue
        if engine.is_foreign and (fault := first_fault(engine, reference)) is not None:
            say(f"engine {asked}: {fault}; not used")
            continue
        yield Candidate(asked, engine, reference, whole)
    say(f"engine {reference.name}: used instead")
    yield Candidate(reference.name, reference, reference, whole)


def _ragged(rows: list[np.ndarray]) -> Ragged:
    offsets = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum([row.size for row in rows], out=offsets[1:])
    return Ragged(np.concatenate(rows) if rows else np.zeros(0, dtype=np.uint32), offsets)


def _pieces(text: str) -> Iterator[str]:
    start = 0
    while len(text) - start > _PIECE_CHARACTERS:
        end = text.rfind(" ", start + 1, start + _PIECE_CHARACTERS)
        while end > 0 and text[end - 1].isspace():  # within a run of white space
            end = text.rfind(" ", start + 1, end)
        if end < 0 and (found := _SPACE_BEHIND.search(text, start + _PIECE_CHARACTERS)):
            end = found.start()
        if end < 0:
            break
        yield text[start:end]
        start = end
    yield text[start:]


def _has_added_tokens(backend: Tokenizer) -> bool:
    return any(not token.special for token in backend.get_added_tokens_decoder().values())


def _without_special_tokens(backend: Tokenizer) -> str:
    """``tokenizer.json`` without the added tokens that documents must not be searched for."""
    state = json.loads(backend.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if not token["special"]]
    state["post_processor"] = None
    return json.dumps(state)


def _release(package: str) -> str:
    try:
        return VERSION if package == "bnb_ds" else version(package)
    except PackageNotFoundError:  # on the path, but not installed
        return "unknown"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
