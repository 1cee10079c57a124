"""The arguments that transformers' Trainer and PEFT pass to the forward pass of any model."""

from __future__ import annotations

from typing import Any

from bnb_ds.errors import ConfigError

#: arguments of other models' forward pass, and why a value cannot be used here
_FOREIGN = {
    "inputs_embeds": "positions and layout are read off token ids: give input_ids",
    "decoder_input_ids": "all target positions are decoded at once, from the source alone: leave it out",
    "decoder_attention_mask": "all target positions are decoded at once, from the source alone: leave it out",
    "decoder_inputs_embeds": "all target positions are decoded at once, from the source alone: leave it out",
    "encoder_outputs": "the source is encoded in every forward pass: give input_ids",
    "past_key_values": "nothing is decoded one token after the other: leave it out",
    "position_ids": "a token's position is its index among the real tokens: leave it out",
    "output_attentions": "attention over packed rows keeps no weights: leave it out",
    "output_hidden_states": "only encoder_last_hidden_state is kept, and it is always returned: leave it out",
}
#: switches that change nothing here
_WITHOUT_EFFECT = ("use_cache", "cache_position")


def take_return_dict(options: dict[str, Any], *, last: bool = False) -> bool:
    """Remove transformers' arguments from ``options``, and say whether the output is to be a `ModelOutput`.

    Args:
        options: keyword arguments of a forward pass.
        last: nobody reads what remains.

    Raises:
        ConfigError: an argument that this model cannot use has a value; or something remains.
    """
    for name in _WITHOUT_EFFECT:
        options.pop(name, None)
    for name, reason in _FOREIGN.items():
        value = options.pop(name, None)
        if value is not None and value is not False:
            raise ConfigError(f"forward was given {name}: {reason}")
    returns_dict = options.pop("return_dict", None) is not False
    if last and options:
        raise ConfigError(f"forward was given {', '.join(options)}: this model has no such argument; leave it out")
    return returns_dict


def in_form(output: Any, returns_dict: bool) -> Any:
    """The output, or the tuple of its values in the order of its fields; the loss comes first, if there is one."""
    if returns_dict:
        return output
    return tuple(output[name] for name in output.__dataclass_fields__ if name in output)
