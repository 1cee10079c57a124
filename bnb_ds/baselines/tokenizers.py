"""Read the tokenizers of baseline checkpoints."""

from __future__ import annotations

from pathlib import Path

from tokenizers.processors import TemplateProcessing
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast

from bnb_ds.common.hub import checkpoint_errors, tokenizer_directory
from bnb_ds.data.tokenization import load_tokenizer
from bnb_ds.errors import DataError

#: Radford et al., 2018, figure 1: start, delimiter and extract; the hidden state of extract is classified
_GPT_TOKENS = {"cls_token": "_start_", "sep_token": "_delimiter_", "eos_token": "_classify_", "pad_token": "_pad_"}


def read_tokenizer(checkpoint: str) -> PreTrainedTokenizerFast:
    """Read the tokenizer of a Hugging Face directory or hub name, with the special tokens that its model needs.

    For a BERT this is :func:`bnb_ds.data.tokenization.load_tokenizer`. An OpenAI GPT tokenizer gets the three special
    tokens of GPT's fine-tuning and a padding token.

    Raises:
        DataError: there is no tokenizer, or it lacks a token that begins, ends or pads a text.
        CheckpointError: the tokenizer cannot be fetched.
    """
    if Path(checkpoint).is_file() or _is_bert(checkpoint):
        directory = Path(checkpoint) if Path(checkpoint).is_file() else tokenizer_directory(checkpoint)
        return load_tokenizer(directory or Path(checkpoint))
    with checkpoint_errors(checkpoint, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=False)
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise DataError(f"{checkpoint}: its tokenizer has no tokenizer.json; save one with save_pretrained")
    if _model_type(checkpoint) == "openai-gpt" and tokenizer.cls_token is None:
        _add_gpt_tokens(tokenizer)
    for name in ("pad_token_id", "sep_token_id" if tokenizer.cls_token_id is not None else "eos_token_id"):
        if getattr(tokenizer, name) is None:
            raise DataError(f"{checkpoint}: its tokenizer has no {name.removesuffix('_id')}; add one to it")
    return tokenizer


def _add_gpt_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.add_special_tokens(_GPT_TOKENS)
    start, between, end = (_GPT_TOKENS[name] for name in ("cls_token", "sep_token", "eos_token"))
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{start} $A {end}",
        pair=f"{start} $A {between} $B {end}",
        special_tokens=[(token, tokenizer.convert_tokens_to_ids(token)) for token in (start, between, end)],
    )


def _is_bert(checkpoint: str) -> bool:
    kind = _model_type(checkpoint)
    return kind is None or kind in ("bert", "encoder-decoder", "marian-bert")


def _model_type(checkpoint: str) -> str | None:
    """``model_type`` of config.json; None if there is no config.json, as in a directory with only a tokenizer."""
    if Path(checkpoint).is_dir() and not (Path(checkpoint) / "config.json").is_file():
        return None
    with checkpoint_errors(checkpoint, "model"):
        return AutoConfig.from_pretrained(checkpoint, trust_remote_code=False).model_type
