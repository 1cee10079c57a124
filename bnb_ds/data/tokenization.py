"""Tokenizers: loads and checks them, identifies them by a hash, and encodes documents.

transformers 5 builds a ``BertTokenizerFast`` out of almost anything. A missing directory gives a vocabulary of five
tokens. If ``tokenizer_config.json`` does not mention case, the release of transformers decides whether text is
lowercased, even against the vocabulary. :func:`load_tokenizer` follows the files and refuses files that contradict each
other. `bnb_ds.data.subwords.tokenizer_json` reads byte-level BPE and SentencePiece tokenizers.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tokenizers import Tokenizer
from transformers import BertTokenizerFast, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from bnb_ds.data.subwords.rules import family_of
from bnb_ds.data.subwords.tokenizer_json import read_config, read_subword_tokenizer, refuse_slow_files
from bnb_ds.errors import DataError
from bnb_ds.shards.manifest import SPECIAL_TOKENS, TokenizerInfo

SPECIAL_TOKEN_TEXTS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # in the order of SPECIAL_TOKENS

_WAY_OUT = (
    "give a directory with the tokenizer.json of a WordPiece, byte-level BPE or SentencePiece tokenizer, a BERT"
    " vocab.txt, or make one with `bnb-ds prep vocab`"
)
_CASED_SHARE = 0.01  # an uncased vocabulary may hold a few tokens that Python's lower() would change


def load_tokenizer(path: str | os.PathLike[str]) -> PreTrainedTokenizerFast:
    """Load a tokenizer from local files: BERT's WordPiece, byte-level BPE, or SentencePiece (Unigram or BPE).

    Args:
        path: a directory with ``tokenizer.json`` or ``vocab.txt`` (as ``save_pretrained`` writes it), or a BERT
            vocabulary file with one token per line. Without a setting, a BERT's text is lowercased unless the tokens
            hold capitals.

    Raises:
        DataError: the tokenizer is missing, is of another kind, lacks special tokens, or its vocabulary contradicts its
            settings.
    """
    path = Path(path)
    if path.is_file():
        return _from_vocabulary_file(path)
    if not path.is_dir():
        raise DataError(f"{path}: no such tokenizer; {_WAY_OUT}")
    if (path / "tokenizer.json").is_file():
        tokenizer = _from_tokenizer_json(path)
    else:
        refuse_slow_files(path)
        if not (path / "vocab.txt").is_file():
            raise DataError(f"{path}: holds neither tokenizer.json nor vocab.txt; {_WAY_OUT}")
        if (path / "tokenizer_config.json").is_file():
            tokenizer = _from_vocabulary_and_config(path)
        else:
            tokenizer = _from_vocabulary_file(path / "vocab.txt", name=path.name)
    _check(tokenizer, path)
    return tokenizer


def tokenizer_from_vocabulary(
    tokens: Sequence[str], *, lowercase: bool, name: str = "", model_max_length: int = 512
) -> BertTokenizerFast:
    """A BERT tokenizer with this vocabulary. The id of a token is its place in ``tokens``.

    Args:
        tokens: distinct strings, among them [PAD], [UNK], [CLS], [SEP] and [MASK].
        lowercase: lowercase text and strip accents, as the uncased BERT models do.
        name: name of the tokenizer in shard manifests.
        model_max_length: longest sequence of the model, in tokens, for Hugging Face's own truncation.
    """
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = BertTokenizerFast(vocab=vocabulary, do_lower_case=lowercase, model_max_length=model_max_length)
    tokenizer.name_or_path = name
    return tokenizer


def tokenizer_hash(tokenizer: PreTrainedTokenizerFast) -> str:
    """SHA-256 (hex) of everything that decides which ids a text gets.

    It covers the model with its vocabulary, the normalizer, the pre-tokenizer, the added tokens and the ids of the
    special tokens. It does not cover padding, truncation, the name or the path.
    """
    return _hash(tokenizer, _state(tokenizer))


def _state(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    return json.loads(tokenizer.backend_tokenizer.to_str())


def _hash(tokenizer: PreTrainedTokenizerFast, state: dict[str, Any]) -> str:
    parts: dict[str, Any] = {key: state[key] for key in ("model", "normalizer", "pre_tokenizer", "added_tokens")}
    parts["special_ids"] = special_ids(tokenizer)
    return hashlib.sha256(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode("ascii")).hexdigest()


def special_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    """Ids of ``pad``, ``unk``, ``cls``, ``sep`` and ``mask``, whatever a family calls them: ``<s>`` is RoBERTa's cls.

    A byte-level tokenizer may have no ``unk``, and some have no ``mask``; then the name is missing.
    """
    ids = {name: getattr(tokenizer, f"{name}_token_id") for name in SPECIAL_TOKENS}
    return {name: index for name, index in ids.items() if index is not None}


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """One more than the largest id of a tokenizer of any kind, added tokens included."""
    return 1 + max(tokenizer.get_vocab().values())


def plain_backend(tokenizer: PreTrainedTokenizerFast, spelled: Iterable[str] = ()) -> Tokenizer:
    """A copy of the tokenizer's Rust half for texts: whole ones, in which letters do not become special tokens.

    A Unigram model takes ``</s>`` in a text for the special token even if it is told to split special tokens, because
    they are pieces of its vocabulary. Here these pieces are put out of reach of every text.

    Args:
        tokenizer: is not changed; its padding and truncation have no effect.
        spelled: special tokens that a text may spell all the same.
    """
    state = _state(tokenizer)
    state["padding"] = state["truncation"] = None
    special = {token["content"] for token in state["added_tokens"] if token["special"]}
    hidden = special.difference(spelled)
    if hidden and state["model"]["type"] != "WordPiece":
        _hide(state["model"], hidden)
        state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] not in hidden]
        state["post_processor"] = None
    for token in state["added_tokens"]:
        # Letters of a token that is added, but not special, are always that token.
        token["special"] = token["content"] in hidden
    backend = Tokenizer.from_str(json.dumps(state))
    backend.encode_special_tokens = True
    return backend


def _hide(model: dict[str, Any], tokens: set[str]) -> None:
    """Give pieces names that no text can spell, because in a text spaces are always written in another way."""
    if model["type"] == "Unigram":
        model["vocab"] = [[f" {piece} " if piece in tokens else piece, score] for piece, score in model["vocab"]]
        return
    model["vocab"] = {f" {piece} " if piece in tokens else piece: index for piece, index in model["vocab"].items()}
    merges = [pair if isinstance(pair, list) else pair.split(" ") for pair in model["merges"]]
    model["merges"] = [pair for pair in merges if not tokens.intersection((*pair, "".join(pair)))]
    if model.get("unk_token") in tokens:
        model["unk_token"] = f" {model['unk_token']} "


def describe_tokenizer(tokenizer: PreTrainedTokenizerFast) -> TokenizerInfo:
    """What a shard directory records about a tokenizer."""
    state = _state(tokenizer)
    return TokenizerInfo(
        name=Path(tokenizer.name_or_path).name or "unnamed",
        hash=_hash(tokenizer, state),
        vocab_size=vocabulary_size(tokenizer),
        special_ids=special_ids(tokenizer),
        save=lambda directory: save_tokenizer(tokenizer, directory),
    )


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, directory: str | os.PathLike[str]) -> None:
    """Write the tokenizer's files. Padding and truncation that an earlier call has switched on are not saved."""
    backend = tokenizer.backend_tokenizer
    padding, truncation = backend.padding, backend.truncation
    backend.no_padding()
    backend.no_truncation()
    try:
        tokenizer.save_pretrained(directory)
    finally:  # restored afterwards, because copying a tokenizer instead takes a third of a second
        if padding is not None:
            backend.enable_padding(**padding)
        if truncation is not None:
            backend.enable_truncation(**truncation)


class DocumentEncoder:
    """Encodes documents as shards hold them: whole, and without special tokens.

    It is equal to ``tokenizer(text, add_special_tokens=False, split_special_tokens=True)``: if a text contains the
    letters ``[MASK]``, they become ordinary tokens, for a Unigram model too. The given tokenizer is not changed, and
    its padding and truncation settings have no effect.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._backend = plain_backend(tokenizer)

    def __call__(self, texts: Iterable[str]) -> list[np.ndarray]:
        """Token ids of each text: uint32 [num_tokens], of length 0 for a text without tokens."""
        encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.uint32) for encoding in encodings]


def _from_tokenizer_json(path: Path) -> PreTrainedTokenizerFast:
    try:
        backend = Tokenizer.from_file(str(path / "tokenizer.json"))
    except Exception as error:  # tokenizers raises bare Exception
        raise DataError(f"{path / 'tokenizer.json'}: not readable ({error}); {_WAY_OUT}") from None
    state = json.loads(backend.to_str())
    family = family_of(state)
    if family in ("byte-level", "metaspace"):
        return read_subword_tokenizer(path, backend)
    kinds = [(state[key] or {}).get("type") for key in ("model", "normalizer", "pre_tokenizer")]
    if kinds != ["WordPiece", "BertNormalizer", "BertPreTokenizer"]:
        raise DataError(
            f"{path / 'tokenizer.json'}: a {kinds[0]} tokenizer whose pieces do not say, as ##, Ġ or ▁ do, where words"
            f" begin; {_WAY_OUT}"
        )
    normalizer = state["normalizer"]
    tokenizer = _from_pretrained(
        path,
        do_lower_case=normalizer["lowercase"],
        strip_accents=normalizer["strip_accents"],
        tokenize_chinese_chars=normalizer["handle_chinese_chars"],
    )
    loaded = _state(tokenizer)
    for key in ("model", "normalizer", "added_tokens"):
        if loaded[key] != state[key]:
            raise DataError(
                f"{path}: transformers reads another {key} than tokenizer.json holds; "
                "remove the contradicting settings from tokenizer_config.json"
            )
    return tokenizer


def _from_pretrained(path: Path, **settings: Any) -> BertTokenizerFast:
    try:
        tokenizer = BertTokenizerFast.from_pretrained(str(path), local_files_only=True, **settings)
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: transformers cannot load this tokenizer ({reason}); {_WAY_OUT}") from None
    for how_it_was_loaded in ("is_local", "local_files_only"):  # else these arguments would be saved as settings
        tokenizer.init_kwargs.pop(how_it_was_loaded, None)
    return tokenizer


def _from_vocabulary_and_config(path: Path) -> BertTokenizerFast:
    tokens = _read_vocabulary(path / "vocab.txt")
    settings = {} if "do_lower_case" in read_config(path) else {"do_lower_case": not _is_cased(tokens)}
    return _from_pretrained(path, **settings)


def _from_vocabulary_file(path: Path, name: str | None = None) -> BertTokenizerFast:
    tokens = _read_vocabulary(path)
    return tokenizer_from_vocabulary(tokens, lowercase=not _is_cased(tokens), name=name or path.stem)


def _read_vocabulary(path: Path) -> list[str]:
    try:
        # splitlines() would also split at characters that are tokens of multilingual vocabularies.
        tokens = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a readable vocabulary file ({error}); {_WAY_OUT}") from None
    missing = [token for token in SPECIAL_TOKEN_TEXTS if token not in tokens]
    if missing:
        raise DataError(f"{path}: not a BERT vocabulary, {', '.join(missing)} missing; {_WAY_OUT}")
    repeated = [token for token, count in Counter(tokens).items() if count > 1]
    if repeated:
        raise DataError(f"{path}: holds the token {repeated[0]!r} twice; {_WAY_OUT}")
    return tokens


def _is_cased(tokens: Sequence[str]) -> bool:
    """Whether the vocabulary holds tokens that lowercased text never produces."""
    cased = sum(token != token.lower() for token in tokens if token not in SPECIAL_TOKEN_TEXTS)
    return cased > _CASED_SHARE * len(tokens)


def _check(tokenizer: PreTrainedTokenizerFast, path: Path) -> None:
    ids = special_ids(tokenizer)
    is_bert = isinstance(tokenizer, BertTokenizerFast)
    if len(set(ids.values())) != len(ids) or (is_bert and len(ids) < len(SPECIAL_TOKENS)):
        raise DataError(f"{path}: the five special tokens need five different ids, but have {ids}; {_WAY_OUT}")
    if is_bert and _state(tokenizer)["normalizer"]["lowercase"] and _is_cased(list(tokenizer.get_vocab())):
        raise DataError(
            f"{path}: lowercases text although its vocabulary is cased; "
            'set "do_lower_case": false in tokenizer_config.json (and "lowercase" in tokenizer.json)'
        )


class Vocabulary(Protocol):
    """What a model must know about a tokenizer. `TokenizerVocabulary` and shard directories have these attributes."""

    vocab_size: int
    special_ids: dict[str, int]
    tokenizer_hash: str


@dataclass(frozen=True)
class TokenizerVocabulary:
    """The `Vocabulary` of a tokenizer."""

    vocab_size: int
    special_ids: dict[str, int]
    tokenizer_hash: str

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerFast) -> TokenizerVocabulary:
        return cls(vocabulary_size(tokenizer), special_ids(tokenizer), tokenizer_hash(tokenizer))


def text_of(tokenizer: PreTrainedTokenizerBase, ids: Iterable[int]) -> str:
    """The text of a model's input, for people: without [CLS], [SEP] and padding; " / " stands between two texts."""
    texts: list[list[int]] = [[]]
    for token in ids:
        if token in (tokenizer.sep_token_id, tokenizer.eos_token_id):
            texts.append([])
        elif token not in (tokenizer.cls_token_id, tokenizer.pad_token_id):
            texts[-1].append(token)
    return " / ".join(tokenizer.decode(text) for text in texts if text)
