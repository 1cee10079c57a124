"""Merge low-rank adapters into the weights that they belong to.

The sums are made of the weights by name. Two names of one shared weight give the same sum, made once from the weight
without adapters, so tied halves stay tied. (`merge_and_unload` of peft adds to the weight in place, once for each
module that holds it.)
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from bnb_ds.checkpoint.run_dir import read_recipe, run_of
from bnb_ds.checkpoint.weights import read_weights
from bnb_ds.errors import CheckpointError

#: peft's name of the adapters
ADAPTER = "default"
_BASE = ".base_layer."
#: matrices of OpenAI GPT, which transformers keeps transposed (`Conv1D`)
_TRANSPOSED = ("c_attn", "c_proj", "c_fc")
_FIRST, _SECOND = f".lora_A.{ADAPTER}.weight", f".lora_B.{ADAPTER}.weight"


def plain_weights(found: Path) -> dict[str, Tensor]:
    """The weights of a checkpoint, by the names of a model without adapters; they are merged as its run's recipe says.

    Raises:
        CheckpointError: checkpoint or recipe cannot be read, or only one of them has adapters.
    """
    weights = read_weights(found)
    if not any(_BASE in name for name in weights):
        return weights
    lora = read_recipe(run_of(found)).get("lora")
    if not isinstance(lora, dict) or not isinstance(lora.get("rank"), int):
        raise CheckpointError(
            f"{run_of(found) / 'config.resolved.yaml'}: has no lora, but {found.name} has adapters; restore it from a"
            " copy of the run"
        )
    alpha = lora.get("alpha")
    return merged(weights, (2 * lora["rank"] if alpha is None else alpha) / lora["rank"])


def merged(weights: dict[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Weights of the model without adapters: W + scale * B A, computed in float64, in the dtype of W.

    Args:
        weights: of a model with adapters.
        scale: what the product of both matrices is multiplied by.
    """
    plain = {}
    for name, weight in weights.items():
        if name.endswith((_FIRST, _SECOND)):
            continue
        owner, base, leaf = name.rpartition(_BASE)
        if base and leaf == "weight":
            change = scale * (weights[owner + _SECOND].double() @ weights[owner + _FIRST].double())
            if owner.rpartition(".")[2] in _TRANSPOSED:
                change = change.T
            weight = (weight.double() + change).to(weight.dtype)
        plain[f"{owner}.{leaf}" if base else name] = weight
    return plain
