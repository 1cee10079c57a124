"""Parameter groups of the optimizer: weight decay, and rates by layer.

Source of layer-wise rates: Howard and Ruder, Universal Language Model Fine-tuning for Text Classification, ACL 2018.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from torch import nn

from bnb_ds.train.parameters.chosen import height_of, names_of
from bnb_ds.train.parameters.heights import Places

#: height of the parameters of a group, in torch's group; other readers of groups pass it over
HEIGHT = "height"


@dataclass(frozen=True)
class Rates:
    """How groups are made.

    Attributes:
        decay: a parameter of height h has ``decay ** h`` times the learning rate; None: all have the same.
        by_height: whether each height has groups of its own, also if their rates are the same.
    """

    decay: float | None = None
    by_height: bool = False


#: two groups: matrices, and what has no weight decay
ALIKE = Rates()


def parameter_groups(
    model: nn.Module, weight_decay: float, learning_rate: float | None = None, rates: Rates = ALIKE
) -> list[dict[str, Any]]:
    """Groups of the parameters that need a gradient: matrices, and vectors without weight decay, as in BERT.

    Args:
        model: on any device.
        weight_decay: of matrices. Biases and LayerNorm weights have none.
        learning_rate: the peak rate; needed only with ``rates.decay``.
        rates: with rates by height, each height has two groups of its own.
    """
    if rates == ALIKE:
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return _two_groups(trained, weight_decay)
    places, by_height = Places.in_model(model), defaultdict(list)
    for parameter, names in names_of(model).items():
        if parameter.requires_grad:
            by_height[height_of(places, names)].append(parameter)
    groups = []
    for height in sorted(by_height):
        own: dict[str, Any] = {HEIGHT: height}
        if rates.decay is not None:
            assert learning_rate is not None
            own["lr"] = learning_rate * rates.decay**height
        groups += [{**group, **own} for group in _two_groups(by_height[height], weight_decay)]
    return groups


def _two_groups(trained: list[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
