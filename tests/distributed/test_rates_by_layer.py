"""Rates by layer and gradual unfreezing under DeepSpeed are those of a plain loop that adds layers to its optimizer."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

from bnb_ds.config.deepspeed import load_ds_config
from bnb_ds.config.parameters_section import ParametersSection
from bnb_ds.train.engine import build_engine, gradient_norm, take_step
from bnb_ds.train.parameters.chosen import choose, height_of, names_of
from bnb_ds.train.parameters.groups import Rates, parameter_groups
from bnb_ds.train.parameters.heights import Places
from bnb_ds.train.parameters.unfreezing import Beginnings, Unfreezing
from tests import tiny

pytestmark = pytest.mark.slow

RATE, DECAY, WEIGHT_DECAY, CLIP, STEPS = 1e-2, 0.7, 0.1, 0.5, 9
#: large, because Adam would make whole steps of gradients that are 0 but for rounding
EPS = 1e-3
OPTIMIZER = {"type": "AdamW", "params": {"lr": RATE, "weight_decay": WEIGHT_DECAY, "eps": EPS}}
BEGINNINGS = Beginnings(interval=2)


def multiplier(step: int) -> float:
    return 1 - step / (2 * STEPS)


def new_model() -> nn.Module:
    model = tiny.bnb_model(dtype=torch.float32, decoder={"num_hidden_layers": 3})
    choose(model, ParametersSection(freeze=["embeddings"]))
    return model


def batch_of(step: int) -> dict:
    sources = tiny.source_ids([5, 7, 3], seed=step)
    return tiny.packed_form(sources, [source[:3] for source in sources])


def train_plainly(model: nn.Module) -> nn.Module:
    """Layers that have not begun need no gradient, and the optimizer does not know them."""
    places, waiting = Places.in_model(model), {}
    for parameter, names in names_of(model).items():
        if parameter.requires_grad:
            waiting.setdefault(height_of(places, names), []).append(parameter.requires_grad_(False))
    optimizer = torch.optim.AdamW([torch.zeros(1)], lr=RATE, eps=EPS)
    for step in range(1, STEPS + 1):
        for height in [height for height in waiting if BEGINNINGS.step_of(height) <= step]:
            for parameter in waiting.pop(height):
                decay = WEIGHT_DECAY if parameter.ndim > 1 else 0.0
                own = {"lr": RATE, "peak": RATE * DECAY**height, "weight_decay": decay}
                optimizer.add_param_group({"params": [parameter.requires_grad_(True)], **own})
        for group in optimizer.param_groups[1:]:
            group["lr"] = group["peak"] * multiplier(step - 1)
        model(**batch_of(step)).loss.backward()
        nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], CLIP)
        optimizer.step()
        optimizer.zero_grad()
    return model


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_layers_begin_as_if_they_had_not_been_there(stage, device, tmp_path):
    path = tmp_path / "ds.json"
    zero = {"stage": stage, **({"stage3_param_persistence_threshold": 0, "sub_group_size": 500} if stage == 3 else {})}
    sizes = {"train_batch_size": 3, "train_micro_batch_size_per_gpu": 3, "gradient_clipping": CLIP}
    path.write_text(json.dumps({**sizes, "optimizer": OPTIMIZER, "zero_optimization": zero}))
    ours, theirs = new_model(), train_plainly(new_model())
    before = copy.deepcopy(ours).state_dict()
    engine, _ = build_engine(ours, load_ds_config(path, 1), device, multiplier, rates=Rates(DECAY, by_height=True))
    unfreezing, rates = Unfreezing(engine, BEGINNINGS), []
    for step in range(1, STEPS + 1):
        unfreezing.begin_step(step)
        rates.append(sorted({rate for rate in engine.get_lr() if rate}, reverse=True))
        engine.backward(engine(**batch_of(step)).loss)
        take_step(engine, None if (norm := gradient_norm(engine)) is None else float(norm))
    expected = [
        [RATE * DECAY**height * multiplier(step - 1) for height in range(4) if BEGINNINGS.step_of(height) <= step]
        for step in range(1, STEPS + 1)
    ]
    assert [len(some) for some in rates] == [1, 1, 2, 2, 3, 3, 4, 4, 4]
    for got, wanted in zip(rates, expected, strict=True):
        assert got == pytest.approx(wanted)
    found = whole_state(engine)
    for name, weight in theirs.state_dict().items():
        torch.testing.assert_close(found[name], weight, atol=2e-6, rtol=1e-5, msg=lambda text, at=name: f"{at}: {text}")
        is_frozen = "embeddings" in name and "latent" not in name
        # The gradient of a key's bias is 0.
        assert torch.equal(found[name], before[name]) == is_frozen or name.endswith("key.bias"), name


def whole_state(engine) -> dict:
    if engine.zero_optimization_stage() < 3:
        return engine.module.state_dict()
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(engine.module.parameters())):
        return {name: weight.clone() for name, weight in engine.module.state_dict().items()}


def test_groups_by_height_hold_every_weight_once():
    model = new_model()
    groups = parameter_groups(model, WEIGHT_DECAY, RATE, Rates(DECAY))
    assert [(group["height"], group["lr"], group["weight_decay"]) for group in groups] == [
        (height, pytest.approx(RATE * DECAY**height), decay) for height in range(4) for decay in (WEIGHT_DECAY, 0.0)
    ]
    found = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(found) == len(set(found))
    assert set(found) == {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
