"""Low-rank adapters in a model, made by peft.

peft gives each matrix adapters of its own, even where two modules share their weight. Merged, one weight would have to
be two. Here such modules share their adapters too, so a model of tied halves stays one.

Source: Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022.
"""

from __future__ import annotations

import importlib
import re
import warnings
from collections import defaultdict

from torch import Tensor, nn

from bnb_ds.checkpoint.merging import ADAPTER
from bnb_ds.config.parameters_section import LoraSection
from bnb_ds.errors import ConfigError, how_to_install
from bnb_ds.train.parameters.heights import matrices


def require_peft() -> None:
    """Raise ConfigError if the extra ``[lora]`` is not installed."""
    try:
        importlib.import_module("peft")
    except ImportError:
        raise ConfigError(f"lora needs the package peft: {how_to_install('lora')}") from None


def add_adapters(model: nn.Module, lora: LoraSection) -> int:
    """Put adapters on the matrices that a section names; only they need a gradient afterwards.

    The first matrices are random, from torch's global generator; the second ones are 0, so outputs stay the same.

    Returns:
        The number of matrices that have adapters of their own.

    Raises:
        ConfigError: peft is missing, the model has no such matrix, or a matrix is smaller than the rank.
    """
    require_peft()
    from peft import LoraConfig, inject_adapter_in_model

    chosen, places = _chosen(model, lora), defaultdict(list)
    for name, module in model.named_modules(remove_duplicate=False):
        places[module].append(name)
    aliases = {name: places[model.get_submodule(name)] for name in chosen}
    # A pattern, because peft would take a name for the end of other names too.
    pattern = "|".join(re.escape(name) for name in chosen)
    settings = LoraConfig(
        r=lora.rank, lora_alpha=lora.scale * lora.rank, lora_dropout=lora.dropout, target_modules=pattern
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about Conv1D, whose orientation peft sets itself
        inject_adapter_in_model(settings, model, adapter_name=ADAPTER)
    for name, others in aliases.items():  # one module in several places, of which peft has seen the first
        for other in others:
            model.set_submodule(other, model.get_submodule(name))
    return _share_adapters([model.get_submodule(name) for name in chosen])


def _chosen(model: nn.Module, lora: LoraSection) -> list[str]:
    """Names of the modules that get adapters."""
    found = matrices(model)
    known = sorted(set().union(*found.values()))
    for target in lora.targets:
        if target not in known:
            raise ConfigError(f"lora.targets {target}: the model has no such matrix; it has {', '.join(known)}")
    chosen = [name for name, roles in found.items() if roles & set(lora.targets)]
    smallest = min(min(_weight(model.get_submodule(name)).shape) for name in chosen)
    if lora.rank > smallest:
        raise ConfigError(
            f"lora.rank {lora.rank}: a chosen matrix has {smallest} rows or columns, so that adapters would hold more"
            f" than it; give at most {smallest}"
        )
    return chosen


def _weight(module: nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight


def _share_adapters(layers: list[nn.Module]) -> int:
    """Let layers that share a weight share its adapters; the number of different ones."""
    owners: dict[int, nn.Module] = {}
    for layer in layers:
        base = layer.base_layer
        assert isinstance(base, nn.Module)
        owner = owners.setdefault(id(_weight(base)), layer)
        if owner is not layer:
            layer.lora_A, layer.lora_B = owner.lora_A, owner.lora_B
    return len(owners)
