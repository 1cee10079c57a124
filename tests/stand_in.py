"""A device that is not there: tensors that say they lie elsewhere, hold the right values, note every wait for them, and
count what a GPU would launch.

Code that runs on a GPU must not make the host wait for it, except where it says so. Here tensors say that they are on
``meta``, so code takes the branches of a device that is no CPU, but their values are computed on the CPU. Whatever
would make the host wait for a GPU is noted with its place: `item` and all that calls it, copies to the host, blocking
copies from the host, and operations whose result has a size that only the device knows. Every operation that is no view
counts as one launch.
"""

from __future__ import annotations

import copy
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

from tests.compiled import Counted

ELSEWHERE = torch.device("meta")
_PACKAGE = f"{Path(__file__).parents[1] / 'bnb_ds'}/"
_aten = torch.ops.aten
#: what only the device can tell: a value, or the size of a result
_WAITING = {
    "aten::_local_scalar_dense",
    "aten::_unique2",
    "aten::bincount",
    "aten::equal",
    "aten::is_nonzero",
    "aten::masked_select",
    "aten::nonzero",
    "aten::unique_consecutive",
    "aten::unique_dim",
}
_MAKE_FROM_HOST = {torch.tensor, torch.as_tensor, Tensor.new_tensor}


class Far(Tensor):
    """A tensor elsewhere; ``held`` holds its values."""

    held: Tensor

    @staticmethod
    def __new__(cls, real: Tensor) -> Far:
        return Tensor._make_wrapper_subclass(
            cls, real.shape, real.stride(), real.storage_offset(), dtype=real.dtype, device=ELSEWHERE
        )

    def __init__(self, real: Tensor):
        self.held = real

    def __repr__(self, **_: Any) -> str:
        return f"Far({self.held})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} on a tensor elsewhere, outside `elsewhere`")


def _is_elsewhere(device: Any) -> bool:
    return device is not None and torch.device(device) == ELSEWHERE


class Waits(list[str]):
    """Every wait of the host, with its place; and how many operations would be launches."""

    launches = 0


class _Operations(TorchDispatchMode):
    def __init__(self, waits: Waits):
        super().__init__()
        self._waits = waits

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        to_elsewhere = _is_elsewhere(kwargs.get("device"))
        leaves = tree_leaves((args, kwargs))
        if not to_elsewhere and not any(isinstance(leaf, Far) for leaf in leaves):
            return func(*args, **kwargs)
        if self._makes_the_host_wait(func, args, kwargs):
            self._waits.append(f"{func.name()} at {_place()}")
        self._waits.launches += func.overloadpacket.__name__ not in Counted.FREE
        real_args, real_kwargs = tree_map(_real, (args, kwargs))
        if to_elsewhere:
            real_kwargs["device"] = "cpu"
        out = func(*real_args, **real_kwargs)
        if func is _aten._to_copy.default and "device" in kwargs and not to_elsewhere and kwargs["device"] is not None:
            return out
        if isinstance(args[0] if args else None, Tensor) and not isinstance(args[0], Far):
            if func._schema.is_mutable:
                return args[0]  # `copy_` to the host
            return tree_map(_far, out)
        return return_and_correct_aliasing(func, args, kwargs, tree_map(_far, out))

    @staticmethod
    def _makes_the_host_wait(func: Any, args: Any, kwargs: dict[str, Any]) -> bool:
        name = func.name().split(".")[0]
        if name in ("aten::_to_copy", "aten::copy_"):
            source = args[0] if name == "aten::_to_copy" else args[1]
            came_from_host = not isinstance(source, Far)
            stays = kwargs.get("device") is None if name == "aten::_to_copy" else isinstance(args[0], Far)
            if isinstance(source, Far):
                return not (stays or _is_elsewhere(kwargs.get("device")))
            asynchronous = kwargs.get("non_blocking") or (name == "aten::copy_" and len(args) > 2 and args[2])
            return came_from_host and source.dim() > 0 and not asynchronous
        if name == "aten::repeat_interleave" and isinstance(args[0], Far):
            return kwargs.get("output_size") is None and func.name().endswith("Tensor")
        if name in ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"):
            given = [index for index in args[1] if index is not None]
            return any(index.dtype == torch.bool or not isinstance(index, Far) for index in given)
        return name in _WAITING


class _Functions(TorchFunctionMode):
    """What never reaches the operations."""

    def __init__(self, waits: list[str]):
        super().__init__()
        self._waits = waits

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is Tensor.tolist and isinstance(args[0], Far):
            self._waits.append(f"tolist at {_place()}")
            return args[0].held.tolist()
        if func in _MAKE_FROM_HOST:
            like = args[0] if isinstance(args[0], Far) else None
            if like is not None or _is_elsewhere(kwargs.get("device")):
                self._waits.append(f"{func.__name__} at {_place()}")
                values = torch.tensor(args[1] if like is not None else args[0], dtype=kwargs.get("dtype"))
                return Far(values if like is None or "dtype" in kwargs else values.to(like.dtype))
        return func(*args, **kwargs)


def _place() -> str:
    frames = [frame for frame in traceback.extract_stack() if frame.filename.startswith(_PACKAGE)]
    names = [f"{frame.filename.removeprefix(_PACKAGE)}:{frame.name}" for frame in reversed(frames[-2:])]
    return " < ".join(names) or "the test"


def _real(value: Any) -> Any:
    if isinstance(value, Far):
        return value.held
    assert not isinstance(value, Tensor) or value.device.type != "meta", "a tensor elsewhere without values"
    return value


def _far(value: Any) -> Any:
    return Far(value) if isinstance(value, Tensor) and not isinstance(value, Far) else value


@contextmanager
def elsewhere(monkeypatch: Any) -> Iterator[Waits]:
    """Within the block, tensors may be elsewhere; the list gets every wait of the host, with its place."""
    waits = Waits()
    autocast, is_autocast_enabled = torch.autocast, torch.is_autocast_enabled

    def autocast_elsewhere(device_type: str, *args: Any, **kwargs: Any) -> Any:
        return nullcontext() if device_type == ELSEWHERE.type else autocast(device_type, *args, **kwargs)

    with monkeypatch.context() as patch, _Functions(waits), _Operations(waits):
        patch.setattr(torch, "autocast", autocast_elsewhere)
        patch.setattr(torch, "is_autocast_enabled", lambda kind: kind != ELSEWHERE.type and is_autocast_enabled(kind))
        yield waits


def moved(model: nn.Module) -> nn.Module:
    """A copy of a model whose parameters and buffers are elsewhere."""
    model = copy.deepcopy(model)
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                module._parameters[name] = _known(parameter)
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = Far(buffer)
    return model


def _known(parameter: nn.Parameter) -> nn.Parameter:
    """One tensor elsewhere for each parameter, so that those that are shared stay shared."""
    if not hasattr(parameter, "elsewhere"):
        parameter.elsewhere = nn.Parameter(Far(parameter.detach()), requires_grad=parameter.requires_grad)
    return parameter.elsewhere
