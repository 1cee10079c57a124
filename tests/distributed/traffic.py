"""One rank of `test_traffic`: a step under DeepSpeed, and the bytes that it hands to each collective operation.

``early`` are the bytes of reductions that begin before the last gradient of a backward pass is there, and so can be
sent while others are computed.

Arguments: a DeepSpeed JSON, micro steps, output file. The environment may name parts of the model that are frozen.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from bnb_ds.config.deepspeed import load_ds_config
from bnb_ds.config.parameters_section import ParametersSection
from bnb_ds.distributed import ranks
from bnb_ds.train.engine import build_engine, gradient_norm, take_step
from bnb_ds.train.parameters.chosen import choose
from tests import tiny

#: operation of torch.distributed -> the argument that holds the whole tensor, not one rank's part of it
OPERATIONS = {
    "all_reduce": "tensor",
    "reduce": "tensor",
    "broadcast": "tensor",
    "all_gather_into_tensor": "output_tensor",
    "_all_gather_base": "output_tensor",
    "all_gather": "tensor_list",
    "reduce_scatter_tensor": "input",
    "_reduce_scatter_base": "input",
    "reduce_scatter": "input_list",
}
#: the variable that names frozen parts
FROZEN = "FROZEN_PARTS"
#: norms, flags and the like are smaller
SMALLEST_BYTES = 256


def model() -> nn.Module:
    torch.manual_seed(0)
    size = {"vocab_size": 203, "hidden_size": 48, "intermediate_size": 96}
    made = tiny.bnb_model(dtype=torch.float32, encoder=size, decoder=size).train()
    choose(made, ParametersSection(freeze=os.environ.get(FROZEN, "").split()))
    return made


class Gradients:
    """How many numbers of the gradient a backward pass has computed so far."""

    def __init__(self) -> None:
        self.total = self.done = 0

    def watch(self, module: nn.Module) -> None:
        for parameter in module.parameters():
            if not parameter.requires_grad:
                continue
            size = parameter.ds_numel if hasattr(parameter, "ds_numel") else parameter.numel()
            self.total += size
            parameter.register_hook(lambda gradient, size=size: self._add(size))

    def _add(self, size: int) -> None:
        self.done += size


def count(operations: Counter[str], gradients: Gradients) -> None:
    """From here on, note the bytes of every collective operation."""
    depth = []

    def counted(name: str, function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            place = 0 if name != "reduce_scatter_tensor" and not name.endswith("scatter_base") else 1
            place = 1 if name == "reduce_scatter" else place
            whole = kwargs[OPERATIONS[name]] if OPERATIONS[name] in kwargs else args[place]
            tensors = whole if isinstance(whole, list) else [whole]
            size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
            if not depth and size >= SMALLEST_BYTES:  # some call each other
                operations[name] += size
                if name in ("all_reduce", "reduce_scatter_tensor") and 0 < gradients.done < gradients.total:
                    operations["early"] += size
            depth.append(name)
            try:
                return function(*args, **kwargs)
            finally:
                depth.pop()

        return call

    for name in OPERATIONS:
        if hasattr(dist, name):
            setattr(dist, name, counted(name, getattr(dist, name)))


def main() -> None:
    path, micro_steps, output = Path(sys.argv[-3]), int(sys.argv[-2]), Path(sys.argv[-1])
    operations: Counter[str] = Counter()
    gradients = Gradients()
    count(operations, gradients)  # before DeepSpeed looks the functions up
    device = ranks.init()
    engine, _ = build_engine(model(), load_ds_config(path, ranks.world_size()), device, lambda step: 1.0)
    gradients.watch(engine.module)
    inputs = tiny.packed_form(tiny.source_ids([5, 3, 9]), tiny.source_ids([3, 2, 4], seed=2))
    per_step = []
    for _ in range(3):
        operations.clear()
        for micro_step in range(micro_steps):
            last = micro_step == micro_steps - 1
            engine.set_gradient_accumulation_boundary(last)
            gradients.done = 0
            engine.backward(engine(**inputs).loss)
            if not last:
                engine.step()
        norm = gradient_norm(engine)
        take_step(engine, None if norm is None else float(norm))
        per_step.append(dict(operations))
    if ranks.is_main():
        output.write_text(json.dumps(per_step))
    ranks.shutdown()


if __name__ == "__main__":
    main()
