"""Reads the ``tokenizer.json`` of byte-level BPE and SentencePiece tokenizers, as RoBERTa, ModernBERT and XLM-R have.

transformers builds some of its tokenizer classes anew out of a vocabulary, and then may split text in another way than
``tokenizer.json`` says. Here the tokenizer is the file's own, whatever class ``tokenizer_config.json`` names, and
nobody's code is run. ``tokenizer_config.json`` gives no more than the names of the special tokens and the longest
sequence.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers
from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast

from bnb_ds.common.hub import SLOW_TOKENIZER_FILES
from bnb_ds.errors import DataError
from bnb_ds.shards.manifest import REQUIRED_TOKENS

#: what a special token is called where no file says it: by BERT and ModernBERT, by RoBERTa and XLM-R
USUAL_TEXTS = {
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>"),
    "cls": ("[CLS]", "<s>"),
    "sep": ("[SEP]", "</s>"),
    "mask": ("[MASK]", "<mask>"),
}
_CONFIG = "tokenizer_config.json"
_FIELDS = tuple(f"{name}_token" for name in (*USUAL_TEXTS, "bos", "eos"))


def read_subword_tokenizer(path: Path, backend: Tokenizer) -> PreTrainedTokenizerFast:
    """The tokenizer of a directory.

    Args:
        path: the directory.
        backend: its ``tokenizer.json``.

    Raises:
        DataError: a special token is not named, or is not in the vocabulary, or no special tokens are put around texts.
    """
    config = read_config(path)
    names = _names_of_tokens(path, config, backend)
    known = {token.content: token for token in backend.get_added_tokens_decoder().values()}
    # As the file has them: which spaces around it belong to a token decides ids.
    tokens = {field: known.get(text, AddedToken(text, special=True, normalized=False)) for field, text in names.items()}
    # RoBERTa's model has no token types, and its configuration says so in model_input_names.
    kept = {name: config[name] for name in ("model_max_length", "model_input_names") if name in config}
    # Its ids say where spaces stand; nothing is left to be cleaned up.
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **tokens, **kept)
    tokenizer.name_or_path = str(path)
    _check_frame(tokenizer, path)
    return tokenizer


def _names_of_tokens(path: Path, config: Mapping[str, Any], backend: Tokenizer) -> dict[str, str]:
    """The text of ``pad_token`` and of the others: what the configuration says, or else what is usual."""
    names: dict[str, str] = {}
    for field in _FIELDS:
        value = config.get(field)
        value = value.get("content") if isinstance(value, dict) else value
        if isinstance(value, str):
            if backend.token_to_id(value) is None:
                raise DataError(
                    f"{path / _CONFIG}: its {field} {value!r} is no token of tokenizer.json; name one that is"
                )
            names[field] = value
    for name, texts in USUAL_TEXTS.items():
        found = next((text for text in texts if backend.token_to_id(text) is not None), None)
        if found is not None:
            names.setdefault(f"{name}_token", found)
    for name, other in (("bos", "cls"), ("eos", "sep")):
        if f"{other}_token" in names:
            names.setdefault(f"{name}_token", names[f"{other}_token"])
    missing = [name for name in REQUIRED_TOKENS if f"{name}_token" not in names]
    if missing:
        raise DataError(
            f"{path}: its tokenizer has no {missing[0]} token; name one of its tokens as"
            f" {missing[0]}_token in {_CONFIG}"
        )
    return names


def read_config(path: Path) -> dict[str, Any]:
    """What ``tokenizer_config.json`` and the older ``special_tokens_map.json`` of a directory say.

    Raises:
        DataError: one of them is not valid.
    """
    merged: dict[str, Any] = {}
    for name in ("special_tokens_map.json", _CONFIG):
        try:
            content = json.loads((path / name).read_bytes()) if (path / name).is_file() else {}
        except (OSError, ValueError) as error:
            raise DataError(f"{path / name}: not valid JSON ({error}); restore it") from None
        if not isinstance(content, Mapping):
            raise DataError(f"{path / name}: holds no JSON object; restore it")
        merged |= content
    return merged


def refuse_slow_files(path: Path) -> None:
    """Refuse a directory that transformers can turn into a fast tokenizer, or whose tokenizer is Python code.

    Args:
        path: a directory without ``tokenizer.json``.

    Raises:
        DataError: it is such a directory; the message says how to convert it.
    """
    kind = read_config(path).get("tokenizer_class")
    found = getattr(transformers, kind, None) if isinstance(kind, str) else None
    if isinstance(found, type) and not issubclass(found, PreTrainedTokenizerFast):
        raise DataError(
            f"{path}: its tokenizer, {kind}, is Python code without a tokenizer.json; choose a model with a fast"
            " tokenizer"
        )
    for name, package in SLOW_TOKENIZER_FILES.items():
        if (path / name).is_file():
            install = f"pip install {package} protobuf, then " if package else ""
            code = (
                f"from transformers import AutoTokenizer as A; A.from_pretrained({str(path)!r}).save_pretrained('NEW')"
            )
            raise DataError(
                f"{path}: holds {name} but no tokenizer.json; convert it once: {install}python -c {shlex.quote(code)},"
                " and give NEW"
            )


def _check_frame(tokenizer: PreTrainedTokenizerFast, path: Path) -> None:
    """Every text stands between the first and the last special token, as the model has learnt it."""
    ids = tokenizer.backend_tokenizer.encode("a").ids
    if len(ids) < 2 or (ids[0], ids[-1]) != (tokenizer.cls_token_id, tokenizer.sep_token_id):
        raise DataError(
            f"{path / 'tokenizer.json'}: its post_processor does not put {tokenizer.cls_token} and"
            f" {tokenizer.sep_token} around a text; give it one (tokenizers.processors.TemplateProcessing)"
        )
