"""Read a recipe from a YAML file and dotted overrides into one typed object of :mod:`bnb_ds.config.sections`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from bnb_ds.common.shipped import find_recipe
from bnb_ds.config.section import Section
from bnb_ds.config.sections import PretrainRecipe, TrainingRecipe
from bnb_ds.errors import ConfigError, nearest

R = TypeVar("R", bound=Section)

#: of text that is no YAML: PyYAML lets out what its constructors raise, for example for a date of month 13
YAML_ERRORS = (yaml.YAMLError, ValueError, LookupError, AttributeError)

# Two ways to set the length of a run.
_ALTERNATIVES = {"steps": "epochs", "epochs": "steps"}


def load_recipe(path: str | Path, overrides: Iterable[str] = (), schema: type[R] = PretrainRecipe) -> R:
    """Read a recipe, apply ``key.path=value`` overrides (values are YAML), and validate it as ``schema``.

    ``path`` is a file, or the name of a shipped recipe (`bnb_ds.common.shipped`).
    An override of ``steps`` removes the recipe's ``epochs``, and an override of ``epochs`` removes its ``steps``.

    Raises:
        ConfigError: lists all faults at once, each with the file or override, the dotted field and the remedy.
    """
    values = recipe_values(path, overrides)
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{path}: " + "; ".join(_describe(e, schema) for e in error.errors())) from None


def recipe_values(path: str | Path, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """The values of a recipe and its overrides, not yet validated: `load_recipe` checks them against a schema.

    Raises:
        ConfigError: the file cannot be read, or an override is malformed.
    """
    values = _read_yaml(find_recipe(path))
    for override in overrides:
        _apply_override(values, override)
    return values


def load_section(values: dict[str, Any], overrides: Iterable[str], name: str, schema: type[R]) -> R:
    """Build one section from its values and ``NAME.KEY=VALUE`` overrides, without a whole recipe.

    Raises:
        ConfigError: an override is not of this section, or a value is wrong.
    """
    whole: dict[str, Any] = {name: dict(values)}
    for override in overrides:
        if not override.startswith(f"{name}."):
            raise ConfigError(f"override {override!r}: write it as {name}.KEY=VALUE")
        _apply_override(whole, override)
    try:
        return schema.model_validate(whole[name])
    except ValidationError as error:
        raise ConfigError("; ".join(_describe(e, schema, f"{name}.") for e in error.errors())) from None


def dump_recipe(recipe: TrainingRecipe) -> str:
    """The recipe as YAML, with all defaults written out."""
    return yaml.safe_dump(recipe.values(), sort_keys=False)


def differences(ours: Any, theirs: Any, prefix: str = "") -> Iterator[str]:
    """``"path: theirs -> ours"`` for every leaf in which two nested dictionaries differ."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in sorted({*ours, *theirs}):
            yield from differences(ours.get(key), theirs.get(key), f"{prefix}.{key}" if prefix else str(key))
    elif ours != theirs:
        yield f"{prefix}: {theirs!r} -> {ours!r}"


def flattened(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted path -> value, for every leaf of nested dictionaries that is not None. Lists become texts."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= flattened(value, f"{prefix}{key}.")
        elif value is not None:
            flat[f"{prefix}{key}"] = str(value) if isinstance(value, list | tuple) else value
    return flat


class _RecipeLoader(yaml.SafeLoader):
    """A safe YAML loader that refuses a key given twice; PyYAML itself would silently keep the last value."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} is given twice; keep one", node.start_mark
                )
        return super().construct_mapping(node, deep)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _RecipeLoader)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such recipe; `bnb-ds recipes` lists the shipped ones") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as a recipe: {error}") from None
    except YAML_ERRORS as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a recipe is a mapping of keys to values; this file holds none")
    return values


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r}: write it as key.path=value, for example data.max_length=128")
    value = read_value(text, f"override {override!r}")
    *parents, leaf = key.split(".")
    node = values
    for i, parent in enumerate(parents):
        child = node.get(parent)
        if child is None:
            child = node[parent] = {}
        if not isinstance(child, dict):
            raise ConfigError(f"override {override!r}: {'.'.join(parents[: i + 1])} is a value, not a section")
        node = child
    node[leaf] = value
    if key in _ALTERNATIVES and value is not None:
        values.pop(_ALTERNATIVES[key], None)


def read_value(text: str, place: str) -> Any:
    """Read one value of a command line as YAML.

    Args:
        text: the value.
        place: where it stands, for the message.

    Raises:
        ConfigError: it is not valid YAML.
    """
    try:
        return yaml.safe_load(text)
    except YAML_ERRORS:
        raise ConfigError(f"{place}: the value is not valid YAML; quote it") from None


def _describe(error: dict[str, Any], schema: type[Section], prefix: str = "") -> str:
    location, sections = _without_tags(error["loc"], schema)
    dotted = (prefix + ".".join(str(part) for part in location)).removesuffix(".")
    if error["type"] == "extra_forbidden":
        return f"unknown key {dotted!r}: {nearest(str(location[-1]), sections[-1].model_fields)}"
    if error["type"] == "missing":
        return f"{dotted}: this field is required"
    if error["type"].startswith("union_tag"):
        kinds = ", ".join(kind for candidate in _sections_of(sections[-1], location[-1]) for kind in _kinds(candidate))
        return f"{dotted}.kind: give one of {kinds}"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        return f"{dotted}: {message}" if dotted else message
    return f"{dotted}: {message} (got {error['input']!r})"


def _without_tags(location: tuple[Any, ...], schema: type[Section]) -> tuple[list[Any], list[type[Section]]]:
    """The field names of an error's path, and the section that each field belongs to.

    Where a field may hold one of several sections, pydantic inserts the ``kind`` into the path; it is left out here.
    """
    names: list[Any] = []
    sections: list[type[Section]] = []
    candidates = [schema]
    for name in location:
        chosen = [candidate for candidate in candidates if len(candidates) > 1 and name in _kinds(candidate)]
        if chosen:
            candidates = chosen
            continue
        names.append(name)
        sections.append(candidates[0] if candidates else sections[-1])
        candidates = _sections_of(sections[-1], name)
    return names, sections


def _sections_of(section: type[Section], name: Any) -> list[type[Section]]:
    """The section classes that a field can hold."""
    if name not in section.model_fields:
        return []
    annotation = section.model_fields[name].annotation
    candidates = [annotation, *getattr(annotation, "__args__", ())]
    return [c for c in candidates if isinstance(c, type) and issubclass(c, Section)]


def _kinds(section: type[Section]) -> tuple[str, ...]:
    field = section.model_fields.get("kind")
    return getattr(field.annotation, "__args__", ()) if field is not None else ()
