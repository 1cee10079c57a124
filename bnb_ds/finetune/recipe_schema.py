"""The JSON Schema of recipes, for editors: ``bnb-ds recipes --schema``."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

from pydantic.json_schema import models_json_schema

from bnb_ds.config.section import Section
from bnb_ds.config.sections import PretrainRecipe
from bnb_ds.data.corruption import OBJECTIVES
from bnb_ds.finetune.recipe import FinetuneRecipe
from bnb_ds.tasks.registry import TASKS


def recipe_schema() -> dict[str, Any]:
    """The schema (draft 2020-12) of both kinds of recipes; one with a ``task`` is for fine-tuning.

    It knows keys, types, ranges and defaults. Rules between several keys are left to `bnb-ds check`.
    """
    _, whole = models_json_schema([(PretrainRecipe, "validation"), (FinetuneRecipe, "validation")])
    definitions = whole["$defs"]
    for section in _sections(Section):
        properties = definitions.get(section.__name__, {}).get("properties", {})
        for name, text in field_comments(section).items():
            if name in properties:
                properties[name]["description"] = text
    # Both are checked by functions, of which pydantic can say nothing.
    definitions["FinetuneRecipe"]["properties"]["task"]["enum"] = sorted(TASKS)
    weights = {"propertyNames": {"enum": list(OBJECTIVES)}, "additionalProperties": {"type": "number", "minimum": 0}}
    corruption = [{"enum": list(OBJECTIVES)}, {"type": "object", **weights}]
    definitions["ObjectiveSection"]["properties"]["corruption"]["anyOf"] = corruption
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A recipe of bnb_ds",
        "type": "object",
        "if": {"required": ["task"]},
        "then": {"$ref": "#/$defs/FinetuneRecipe"},
        "else": {"$ref": "#/$defs/PretrainRecipe"},
        "$defs": definitions,
    }


def field_comments(section: type[Section]) -> dict[str, str]:
    """Field -> the ``#:`` comment above it, for a section's own fields and those that it inherits."""
    found: dict[str, str] = {}
    for base in reversed(section.__mro__):
        if not issubclass(base, Section):
            continue
        comment: list[str] = []
        for line in map(str.strip, inspect.getsource(base).splitlines()):
            if line.startswith("#:"):
                comment.append(line.removeprefix("#:").strip())
                continue
            if comment and (field := re.match(r"(\w+):", line)):
                found[field[1]] = " ".join(comment)
            comment = []
    return found


def _sections(section: type[Section]) -> Iterator[type[Section]]:
    for below in section.__subclasses__():
        yield below
        yield from _sections(below)
