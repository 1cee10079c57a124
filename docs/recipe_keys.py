"""Writes docs/recipe_keys.md, the page of all keys of recipes, from the sections: ``python docs/recipe_keys.py``."""

from __future__ import annotations

import ast
import inspect
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import annotated_types
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from bnb_ds.config.model_section import ModelSection
from bnb_ds.config.section import Section
from bnb_ds.config.sections import PretrainRecipe, TrainingRecipe
from bnb_ds.finetune.recipe import FinetuneRecipe

PAGE = Path(__file__).with_name("recipe_keys.md")
_HEAD = """\
# Keys of recipes

A recipe is a YAML file. A dot in a key stands for a section: `data.max_length=128` on the command line is
`data: {max_length: 128}` in the file. Batch sizes, precision, ZeRO, clipping, the optimizer and its peak learning rate
are no keys of recipes: they stand in the [DeepSpeed JSON](../ds_configs/README.md). An unknown key is an error that
names the nearest one. This page is written by `docs/recipe_keys.py`.
"""
_NOTES = {
    "Fine-tuning": """
`model.kind` says which of these models is meant; its other keys stand under `model(KIND)` below. With `kind: bnb` the
section `model` has the keys that it has in pre-training.
"""
}
_NAMES = {bool: "true or false", int: "whole number", float: "number", str: "text", dict: "mapping", list: "list"}
_BOUNDS = {annotated_types.Gt: ("gt", ">"), annotated_types.Ge: ("ge", "≥"), annotated_types.Lt: ("lt", "<")}
_BOUNDS |= {annotated_types.Le: ("le", "≤")}


def page() -> str:
    """The content of the page."""
    shared = set(TrainingRecipe.model_fields)
    parts = [_HEAD, "\n## Both kinds of runs\n", _table(TrainingRecipe, "", set())]
    for title, recipe in (("Pre-training", PretrainRecipe), ("Fine-tuning", FinetuneRecipe)):
        parts += [f"\n## {title}\n", _NOTES.get(title, ""), _table(recipe, "", shared)]
    return "".join(parts)


def keys(recipe: type[Section]) -> set[str]:
    """Every key of a recipe; those of a model of kind bnb are those of pre-training."""
    return {key for key, _, _ in _leaves(recipe, "", set())}


def _table(recipe: type[Section], prefix: str, left_out: set[str]) -> str:
    rows = ["", "| key | value | default | meaning |", "|---|---|---|---|"]
    rows += [
        f"| `{key}` | {_type_of(field)} | {_default_of(field)} | {_meaning(section, key.rpartition('.')[2])} |"
        for key, section, field in _leaves(recipe, prefix, left_out)
    ]
    return "\n".join(rows) + "\n"


def _leaves(section: type[Section], prefix: str, left_out: set[str]) -> Iterator[tuple[str, type[Section], FieldInfo]]:
    """Key, section and field of each value. Where a section is one of several kinds, its keys name the kind."""
    for name, field in section.model_fields.items():
        if name in left_out:
            continue
        nested = [part for part in _parts(field.annotation) if isinstance(part, type) and issubclass(part, Section)]
        if not nested or len(nested) < len(_parts(field.annotation)):
            yield f"{prefix}{name}", section, field
        for part in nested:
            if len(nested) > 1 and issubclass(part, ModelSection):
                continue
            kind = f"({typing.get_args(part.model_fields['kind'].annotation)[0]})" if len(nested) > 1 else ""
            yield from _leaves(part, f"{prefix}{name}{kind}.", {"kind"} if kind else set())


def _parts(annotation: Any) -> list[Any]:
    """The types that a field may hold, None left out."""
    if typing.get_origin(annotation) is typing.Annotated:
        return _parts(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [inner for part in typing.get_args(annotation) for inner in _parts(part)]
    return [] if annotation is type(None) else [annotation]


def _type_of(field: FieldInfo) -> str:
    words = []
    for part in _parts(field.annotation):
        origin = typing.get_origin(part) or part
        if origin is Literal:
            words += [f"`{value}`" for value in typing.get_args(part)]
        elif isinstance(origin, type) and issubclass(origin, Section):
            words.append("section")
        else:
            words.append(_NAMES[origin])
    return " or ".join(words) + "".join(_bounds(field))


def _bounds(field: FieldInfo) -> Iterator[str]:
    inner = [*field.metadata, *_metadata_within(field.annotation)]
    for bound in inner:
        for kind, (name, sign) in _BOUNDS.items():
            if isinstance(bound, kind):
                value = getattr(bound, name)
                yield f" {sign} {f'2^{value.bit_length() - 1}' if isinstance(value, int) and value > 10**4 else value}"


def _metadata_within(annotation: Any) -> Iterator[Any]:
    for part in typing.get_args(annotation):
        for constraint in getattr(part, "__metadata__", ()):
            yield from getattr(constraint, "metadata", [constraint])


def _default_of(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "none" if field.default_factory is not None else "required"
    if field.default is None:
        return "none"
    if isinstance(field.default, float):
        return f"{field.default:g}"
    return str(field.default).lower() if isinstance(field.default, bool) else str(field.default)


def _meaning(section: type[Section], name: str) -> str:
    """The comment above a field, from the class that declares it."""
    for owner in section.__mro__:
        if name in vars(owner).get("__annotations__", {}):
            return _comments(owner)[name]
    raise LookupError(name)


def _comments(section: type) -> dict[str, str]:
    source = inspect.getsource(section)
    lines, found = source.splitlines(), {}
    (tree,) = ast.parse(source).body
    assert isinstance(tree, ast.ClassDef)
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            above: list[str] = []
            for line in reversed(lines[: node.lineno - 1]):
                if not line.strip().startswith("#:"):
                    break
                above.insert(0, line.strip().removeprefix("#:").strip())
            text = re.sub(r":\w+:``?|``", "`", " ".join(above))
            found[node.target.id] = text.replace("|", "\\|")
    return found


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
