"""Gradual unfreezing: layers begin to learn one after the other, from the top.

DeepSpeed takes no parameters after its engine is made. So a layer that has not begun has a gradient of 0, which adds
nothing to the norm, and a learning rate of 0; when it begins, the optimizer's state for it is set back to that of a new
one. What happens at a step depends on its number alone, so a resumed run goes on as if it had not stopped. No memory is
saved.

Source: Howard and Ruder, Universal Language Model Fine-tuning for Text Classification, ACL 2018, section 3.3.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bnb_ds.train.parameters.chosen import height_of, names_of
from bnb_ds.train.parameters.groups import HEIGHT
from bnb_ds.train.parameters.heights import Places


@dataclass(frozen=True)
class Beginnings:
    """When each height begins to learn.

    Attributes:
        interval: steps between two beginnings.
        layers: heights that begin at a time.
        top: the least height of the model, which begins at the first step: 1 for a model that has no heads.
    """

    interval: int
    layers: int = 1
    top: int = 0

    def step_of(self, height: int) -> int:
        """The first step, from 1, at which parameters of a height are trained."""
        return 1 + self.interval * -(-(height - self.top) // self.layers)

    def describe(self, heights: Iterable[int], total_steps: int) -> str:
        """A line for the user about a model that has parameters of these heights."""
        steps = sorted({self.step_of(height) for height in heights})
        within = [step for step in steps if step <= total_steps]
        line = f"unfreezing   {len(steps)} groups of layers, from the top: one more every {self.interval} steps"
        if len(within) < len(steps):
            return f"{line}; the run ends before {len(steps) - len(within)} of them begin"
        return f"{line}; all are trained from step {steps[-1]}"


class Unfreezing:
    """Holds back the layers of an engine's model that have not begun.

    Args:
        engine: DeepSpeed engine, whose groups were made by height.
        beginnings: when each height begins.
    """

    def __init__(self, engine: Any, beginnings: Beginnings) -> None:
        self._engine = engine
        self._beginnings = beginnings
        self._step = 1
        model = engine.module
        places = Places.in_model(model)
        for parameter, names in names_of(model).items():
            height = height_of(places, names)
            if parameter.requires_grad and beginnings.step_of(height) > 1:
                parameter.register_hook(lambda gradient, height=height: self._held_back(gradient, height))

    def begin_step(self, step: int) -> None:
        """Prepare a step, which is counted from 1; to be called before its first forward pass."""
        self._step = step
        for number, group in enumerate(_inner(self._engine).param_groups):
            first = self._beginnings.step_of(group[HEIGHT])
            if step < first:
                group["lr"] = 0.0
            elif step == first and first > 1:
                self._begin_anew(number, group)

    def _held_back(self, gradient: Tensor, height: int) -> Tensor | None:
        return torch.zeros_like(gradient) if self._step < self._beginnings.step_of(height) else None

    def _begin_anew(self, number: int, group: dict[str, Any]) -> None:
        """Set the optimizer's state of a group back to that of a new one."""
        optimizer = _inner(self._engine)
        if "step" in group:  # NVIDIA apex counts the updates of a group here, others in the state
            group["step"] = 0
        for parameter in _parameters_of(self._engine, number, group):
            state = optimizer.state.get(parameter, {})
            for name, value in state.items():
                if torch.is_tensor(value):
                    value.zero_()
                elif name == "step":
                    state[name] = 0


def _inner(engine: Any) -> Any:
    """The optimizer within DeepSpeed's."""
    return getattr(engine.optimizer, "optimizer", engine.optimizer)


def _parameters_of(engine: Any, number: int, group: dict[str, Any]) -> list[Tensor]:
    """What the optimizer updates for a group: at ZeRO stage 3 its group is empty between steps."""
    if engine.zero_optimization_stage() < 3:
        return group["params"]
    zero = engine.optimizer
    flat = enumerate(zero.fp32_partitioned_groups_flat)
    return [partition for piece, partition in flat if zero.sub_group_to_group_id[piece] == number]
