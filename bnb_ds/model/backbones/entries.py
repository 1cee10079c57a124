"""The families that a half can be made of, and the ones that are refused, each with the reason."""

from __future__ import annotations

import copy
from typing import Any

from transformers import BertConfig, PreTrainedConfig

from bnb_ds.errors import ConfigError
from bnb_ds.model.backbones.backbone import Backbone
from bnb_ds.model.backbones.bert_like import Bert, DistilBert, Electra, Roberta, XlmRoberta
from bnb_ds.model.backbones.modernbert import ModernBert

BACKBONES: dict[str, Backbone] = {
    backbone.model_type: backbone
    for backbone in (Bert(), Roberta(), XlmRoberta(), Electra(), DistilBert(), ModernBert())
}

#: the way out
TAKEN = "give a checkpoint of one of: " + ", ".join(BACKBONES)
#: why a family is no backbone
_REFUSED = {
    **dict.fromkeys(
        ("deberta", "deberta-v2"), "its attention adds terms for pairs of positions, which packed rows cannot have"
    ),
    **dict.fromkeys(("t5", "mt5", "umt5", "bart", "mbart"), "it is an encoder-decoder, not an encoder"),
    **dict.fromkeys(("neobert", "nomic_bert", "new"), "its layers are remote code, which is never run"),
}


def refusal(model_type: str | None) -> str:
    """Why a checkpoint or a configuration of this model type is no backbone, and the way out."""
    why = _REFUSED.get(model_type or "")
    return f"the model type is {model_type!r}{f' ({why})' if why else ''}: {TAKEN}"


def backbone_of(config: Any) -> Backbone:
    """The backbone of a half's configuration.

    Raises:
        ConfigError: there is none for its model type.
    """
    found = BACKBONES.get(config.model_type)
    if found is None:
        raise ConfigError(refusal(config.model_type))
    return found


def half_of(field: str, value: PreTrainedConfig | dict[str, Any] | None) -> PreTrainedConfig:
    """A half's configuration, as a copy.

    Args:
        field: name of the half, for messages.
        value: a configuration, a dict of the fields of one (of a BERT's without ``model_type``); None: BERT-base.

    Raises:
        ConfigError: it is no configuration of a backbone.
    """
    if value is None:
        return BertConfig()
    if isinstance(value, dict):
        model_type = value.get("model_type", BertConfig.model_type)
        if model_type not in BACKBONES:
            raise ConfigError(f"{field}: {refusal(model_type)}")
        value = BACKBONES[model_type].config_class.from_dict(dict(value))
    model_type = getattr(value, "model_type", None)
    if model_type not in BACKBONES:
        raise ConfigError(f"{field}: {refusal(model_type or type(value).__name__)}")
    # A copy: changes to one half must not reach the other half or the caller's object.
    return BACKBONES[model_type].half(copy.deepcopy(value))


def positions_of(config: Any) -> int:
    """The most tokens or slots of a sequence in a half of this configuration."""
    return backbone_of(config).positions(config)


def whole_modules() -> list[str]:
    """Classes of all backbones that no tool may spread over several devices."""
    return sorted({name for backbone in BACKBONES.values() for name in backbone.whole_modules})
