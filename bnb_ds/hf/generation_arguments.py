"""The arguments of transformers' ``generate``, as settings of a decoder that writes all tokens at once.

Three sources hold them, and a later one wins: the model's own ``generation_config``, the argument of that name, and the
arguments themselves. In the first, a value that equals transformers' default counts as not set, because its Trainer
writes the defaults there.
"""

from __future__ import annotations

import inspect
from typing import Any

from transformers import GenerationConfig, GenerationMixin

from bnb_ds.errors import ConfigError

#: settings with the same name and meaning here
_SAME = ("min_length", "max_length", "no_repeat_ngram_size", "bad_words_ids", "length_penalty")
#: settings of sampling
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
#: those that drawing from a graph has too
_OF_DRAWING = ("temperature", "top_p")
#: nothing is cached, and no output waits for its last token: any value of these changes nothing
_WITHOUT_EFFECT = frozenset(
    (
        "_from_model_config",
        "assistant_confidence_threshold",
        "assistant_lookbehind",
        "bos_token_id",
        "cache_config",
        "cache_implementation",
        "compile_config",
        "decoder_start_token_id",
        "disable_compile",
        "early_stopping",
        "eos_token_id",
        "labels",
        "max_cache_len",
        "num_assistant_tokens",
        "num_assistant_tokens_schedule",
        "output_scores",
        "pad_token_id",
        "prefill_chunk_size",
        "remove_invalid_values",
        "renormalize_logits",
        "synced_gpus",
        "target_lookbehind",
        "transformers_version",
        "use_cache",
    )
)
_UNSET: dict[str, Any] = GenerationConfig().to_dict()
# Some releases of transformers keep the defaults in a new configuration, others fill them in when it is used.
_DEFAULTS: dict[str, Any] = {
    **{name: value for name, value in _UNSET.items() if value is not None},
    **getattr(GenerationConfig, "_get_default_generation_params", dict)(),
}
_KNOWN = {*_UNSET, *_DEFAULTS, *inspect.signature(vars(GenerationMixin)["generate"]).parameters}
_NO_SAMPLING = (
    "generate does not sample: all tokens of an output are chosen in one pass, given the source alone; leave it out, "
    "and search with num_beams; if the target is 'dag', draw with strategy='sample'"
)


def decode_settings(
    options: dict[str, Any], own: GenerationConfig | None, given: GenerationConfig | None, *, predicts_lengths: bool
) -> tuple[dict[str, Any], bool]:
    """Fields of `bnb_ds.decoding.options.DecodeOptions` from the arguments of transformers' ``generate``.

    Args:
        options: arguments; those that transformers does not know stay as they are.
        own: the model's generation configuration.
        given: the argument ``generation_config``.
        predicts_lengths: the model's beam is one of lengths.

    Returns:
        The fields; and whether the output is to be a `bnb_ds.decoding.decode.GenerateOutput`.

    Raises:
        ConfigError: an argument asks for what a parallel decoder does not have, or two say the same.
    """
    settings = {name: value for name, value in _set(own).items() if value != _DEFAULTS.get(name)}
    settings = _later(settings, _set(given))
    draws = options.get("strategy") == "sample"  # from a graph of slots
    for name, value in options.items():
        if name in _SAMPLING and not (draws and name in _OF_DRAWING) and not _is_default(name, value):
            raise ConfigError(f"{name} is {value!r}: {_NO_SAMPLING}")
    _refuse_two_names(options)
    settings = _later(settings, {name: value for name, value in options.items() if value is not None})
    if settings.pop("do_sample", False):
        raise ConfigError(f"do_sample is True: {_NO_SAMPLING}")
    returns_dict = bool(settings.pop("return_dict_in_generate", False))
    fields = _renamed(settings, predicts_lengths=predicts_lengths)
    kept = _SAME + (_OF_DRAWING if draws else ())
    for name in _WITHOUT_EFFECT.union(_SAMPLING).difference(kept):
        fields.pop(name, None)
    for name in [name for name in fields if name in _KNOWN and name not in kept]:
        if not _is_default(name, fields.pop(name)):
            raise ConfigError(f"generate was given {name}: {_reason(name)}")
    return fields, returns_dict


def _set(config: GenerationConfig | None) -> dict[str, Any]:
    values = {} if config is None else config.to_dict()
    return {name: value for name, value in values.items() if value is not None and value != _UNSET.get(name)}


def _later(settings: dict[str, Any], later: dict[str, Any]) -> dict[str, Any]:
    """Both; the later one wins, also over another name of the same limit."""
    kept = dict(settings)
    for names in _OTHER_NAMES.values():
        if any(name in later for name in names):
            kept = {name: value for name, value in kept.items() if name not in names}
    return {**kept, **later}


#: names of one setting, ours first; in a configuration a later one wins, as in transformers
_OTHER_NAMES = {
    "max_length": ("max_length", "max_new_tokens"),
    "min_length": ("min_length", "min_new_tokens"),
    "beam": ("beam_size", "length_beam", "num_beams"),
}


def _refuse_two_names(options: dict[str, Any]) -> None:
    for names in _OTHER_NAMES.values():
        both = [name for name in names if options.get(name) is not None]
        if len(both) > 1 and set(both) != {"beam_size", "length_beam"}:
            raise ConfigError(f"generate was given {' and '.join(both)}: they say the same, so give one of them")


def _renamed(settings: dict[str, Any], *, predicts_lengths: bool) -> dict[str, Any]:
    """Settings under the names that `DecodeOptions` has for them."""
    names = {
        # An output has no start token in front of it, so all of its tokens are new.
        "max_new_tokens": "max_length",
        "min_new_tokens": "min_length",
        "num_beams": "length_beam" if predicts_lengths else "beam_size",
    }
    fields = {name: value for name, value in settings.items() if name not in names}
    return {**fields, **{names[name]: value for name, value in settings.items() if name in names}}


def _is_default(name: str, value: Any) -> bool:
    is_empty = value is None or value is False or (isinstance(value, list | tuple | dict) and not value)
    return is_empty or (name in _DEFAULTS and value == _DEFAULTS[name])


def _reason(name: str) -> str:
    if name == "num_return_sequences":
        return "each source has one output; leave it out"
    return "a decoder that writes all tokens at once has no such setting; leave it out"
