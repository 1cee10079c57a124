"""Which trained models may be refined: those whose decoder has read tokens of an output before.

A model does not say so itself. Its kind does (``task.json``), and the recipe beside it (``recipe.yaml``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from bnb_ds.errors import ConfigError
from bnb_ds.model.configuration import BnbConfig
from bnb_ds.systems.base import TASK_FILE
from bnb_ds.systems.model_dir import RECIPE_FILE


def why_not_refined(kind: str, recipe: Mapping[str, Any]) -> str | None:
    """Why a model's decoder has never read tokens of an output, which refinement shows it; None: it has, or may have.

    Args:
        kind: ``model.kind``.
        recipe: of the training, with its defaults.
    """
    model = recipe.get("model")
    if not isinstance(model, Mapping) or kind == "cmlm" or recipe.get("glancing") is not None:
        return None
    if kind == "inat" and model.get("passes") != 1:
        return None
    if model.get("checkpoint") is not None:
        return None  # an earlier training, of which nothing is known here, may have shown tokens
    return f"kind {kind} with passes 1" if kind == "inat" else f"kind {kind} without glancing"


def why_saved_is_not_refined(directory: Path) -> str | None:
    """`why_not_refined` of a saved model; None too if its directory does not tell, as that of a pre-trained model."""
    try:
        kind = json.loads((directory / TASK_FILE).read_text(encoding="utf-8"))["kind"]
        recipe = yaml.safe_load((directory / RECIPE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return None
    return why_not_refined(str(kind), recipe) if isinstance(recipe, dict) else None


def refuse_refinement(refinement: Any, why_not: str | None, name: str = "refinement") -> None:
    """Raise ConfigError for further passes of a model that was not trained for them.

    Args:
        refinement: further passes; 0 and None are none.
        why_not: what `why_not_refined` found.
        name: of the setting, in the message.
    """
    if refinement and why_not is not None:
        raise ConfigError(
            f"{name} is {refinement}: its passes show tokens to the decoder, which saw none in training ({why_not}); "
            f"set it to 0, or train with {'more passes' if 'passes' in why_not else 'glancing'}"
        )


def refuse_refinement_of(directory: Path, config: BnbConfig, decoding: Mapping[str, Any]) -> None:
    """The same for a saved model.

    Args:
        directory: of the model.
        config: of the model, with its own decoding.
        decoding: fields of `bnb_ds.decoding.options.DecodeOptions` that replace the model's own.
    """
    refuse_refinement({**config.decoding, **decoding}.get("refinement"), why_saved_is_not_refined(directory))
