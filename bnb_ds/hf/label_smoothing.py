"""The Trainer's label smoothing, which reads one prediction for each label, is refused for models that have none."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import wrapt
from transformers.modeling_outputs import ModelOutput

from bnb_ds.errors import ConfigError


def refuse_label_smoothing(kind: type[ModelOutput]) -> None:
    """Make transformers' label smoother raise ConfigError for outputs of this class.

    Without it, it would read the slot that happens to stand at the index of a label.
    """

    @wrapt.when_imported("transformers.trainer_pt_utils")
    def refuse(module: ModuleType) -> None:
        @wrapt.patch_function_wrapper(module, "LabelSmoother.__call__")
        def call(wrapped: Callable[..., Any], smoother: Any, args: Any, kwargs: Any) -> Any:
            output = kwargs.get("model_output", args[0] if args else None)
            if isinstance(output, kind):
                raise ConfigError(_message(smoother.epsilon))
            return wrapped(*args, **kwargs)


def _message(epsilon: float) -> str:
    weight = f"{epsilon / (1 - epsilon):.4g}" if 0 < epsilon < 1 else "a number above 0"
    return (
        f"label_smoothing_factor {epsilon}: smooths one prediction for each label, but this model's slots are not tied "
        f"to labels; set it to 0, and load the model with kl_weight={weight}, which smooths every slot as strongly "
        "(target 'dag' has no smoothing)"
    )
