"""Under which conditions the scores in an ``eval_results.json`` were measured. It loads no model code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

#: overrides of the data that change no score
_WITHOUT_EFFECT = ("data.cache_dir=",)


def effective(overrides: Sequence[str]) -> list[str]:
    """The overrides of the data that may change a score."""
    return [override for override in overrides if not override.startswith(_WITHOUT_EFFECT)]


def is_of_other_outputs(results: Mapping[str, Any]) -> bool:
    """Whether outputs had the lengths of references, or were decoded otherwise than the model was saved."""
    return bool(results.get("oracle_length") or results.get("decoding"))


def other_data(results: Mapping[str, Any]) -> list[str]:
    """What replaced the data settings of the model's recipe; empty: it was scored on the data that the recipe names."""
    if "data_overrides" in results:
        return [str(override) for override in results["data_overrides"]]
    # Older results say only where the rows end.
    return [line for line in results.get("rows", ()) if "(ends at data.max_" in line]


def is_partial(results: Mapping[str, Any]) -> bool:
    """Whether only the first rows of a split were scored, because an override of the data said so."""
    return any("data.max_" in change and "_samples" in change for change in other_data(results))
