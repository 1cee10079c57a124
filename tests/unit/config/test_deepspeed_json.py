"""Loading a DeepSpeed JSON completes it for the number of ranks; errors name every fault and its remedy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bnb_ds.config.deepspeed import load_ds_config
from bnb_ds.errors import ConfigError

REPOSITORY = Path(__file__).resolve().parents[3]
VALID = {
    "train_batch_size": 16,
    "train_micro_batch_size_per_gpu": 4,
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-4}},
}


@pytest.fixture
def write(tmp_path):
    def write_json(values) -> Path:
        path = tmp_path / "ds.json"
        path.write_text(values if isinstance(values, str) else json.dumps(values), encoding="utf-8")
        return path

    return write_json


@pytest.mark.parametrize(("world_size", "accumulation"), [(1, 4), (2, 2), (4, 1)])
def test_accumulation_follows_from_the_ranks(write, world_size, accumulation):
    config = load_ds_config(write(VALID), world_size)
    assert config.accumulation_steps == accumulation
    assert config.values["gradient_accumulation_steps"] == accumulation


@pytest.mark.parametrize("path", sorted((REPOSITORY / "ds_configs").glob("*.json")), ids=lambda p: p.name)
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_shipped_configs_are_valid_and_deepspeed_agrees(path, world_size):
    from deepspeed.runtime.config import DeepSpeedConfig

    config = load_ds_config(path, world_size)
    alone = load_ds_config(path, 1)  # without a process group DeepSpeed assumes one rank
    theirs = DeepSpeedConfig(dict(alone.values))
    assert theirs.gradient_accumulation_steps == alone.accumulation_steps
    assert config.global_batch == config.micro_batch * config.accumulation_steps * world_size
    assert theirs.zero_optimization_stage == config.zero_stage


@pytest.mark.parametrize(
    ("change", "precision"),
    [
        ({}, "fp32"),
        ({"fp16": {"enabled": True}, "zero_optimization": {"stage": 1}}, "fp16"),
        ({"bf16": {"enabled": True}, "zero_optimization": {"stage": 1}}, "bf16"),
        ({"torch_autocast": {"enabled": True}}, "bf16"),
    ],
)
def test_precision(write, change, precision):
    assert load_ds_config(write({**VALID, **change}), 1).precision == precision


def test_offload_is_recognised(write):
    zero = {"stage": 2, "offload_optimizer": {"device": "cpu"}}
    assert load_ds_config(write({**VALID, "zero_optimization": zero}), 1).offloads_optimizer
    for zero in ({}, {"stage": 2, "offload_optimizer": None}, {"offload_optimizer": {"device": "none"}}):
        assert not load_ds_config(write({**VALID, "zero_optimization": zero}), 1).offloads_optimizer


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_batch_sise": 3}, "unknown key 'train_batch_sise': did you mean 'train_batch_size'?"),
        ({"zero_optimization": {"stag": 1}}, "unknown key 'zero_optimization.stag': did you mean 'stage'?"),
        ({"fp16": {"enable": True}}, "unknown key 'fp16.enable': did you mean 'enabled'?"),
        ({"fp16": True}, "fp16: write an object, not True"),
        ({"gradient_accumulation_steps": 2}, "remove 'gradient_accumulation_steps': it is derived"),
        ({"scheduler": {}}, "remove 'scheduler': the learning-rate schedule is set in the recipe's"),
        ({"amp": {}}, "remove 'amp'"),
        ({"tensorboard": {}}, "remove 'tensorboard': bnb_ds writes TensorBoard itself"),
        (
            {"gradient_clipping": "auto"},
            "gradient_clipping: only the Hugging Face Trainer fills in 'auto'; write the value",
        ),
        ({"zero_optimization": {"stage": 4}}, "zero_optimization.stage: 4 is not 0, 1, 2 or 3"),
        ({"fp16": {"enabled": True}}, "fp16 with ZeRO stage 0 trains wrongly"),
        ({"bf16": {"enabled": True}}, "bf16 with ZeRO stage 0 saves weights rounded to bf16"),
        (
            {
                "bf16": {"enabled": True},
                "data_types": {"grad_accum_dtype": "fp32"},
                "zero_optimization": {"stage": 1},
            },
            "saves checkpoints that DeepSpeed cannot consolidate; set zero_optimization.stage to 2",
        ),
        ({"torch_autocast": {"enabled": True, "dtype": "float16"}}, "torch_autocast.dtype: 'float16' is not supported"),
        (
            {"gradient_clipping": "x"},
            "gradient_clipping: give the largest gradient norm (0: no clipping) as a number, not 'x'",
        ),
        ({"flops_profiler": {"enable": True}}, "unknown key 'flops_profiler.enable': did you mean 'enabled'?"),
        (
            {"zero_optimization": {"stage": 2, "offload_optimizer": {"devise": "cpu"}}},
            "unknown key 'zero_optimization.offload_optimizer.devise': did you mean 'device'?",
        ),
        ({"zero_optimization": {"offload_optimizer": "cpu"}}, "zero_optimization.offload_optimizer: "),
        ({"optimizer": {"type": ["AdamW"]}}, "optimizer.type: ['AdamW'] is not supported"),
        ({"optimizer": {"kind": "AdamW"}}, "unknown key 'optimizer.kind': known: params, type"),
        ({"optimizer": {"type": "AdamW", "params": {"lr": 1, "betas": 3}}}, "optimizer.params.betas: two numbers"),
        ({"optimizer": {"type": "AdamW", "params": {"lr": 1, "eps": "x"}}}, "optimizer.params.eps: a number of at"),
        (
            {"bf16": {"enabled": True}, "fp16": {"enabled": True}, "zero_optimization": {"stage": 1}},
            "fp16 and bf16 are both enabled; keep one",
        ),
        ({"optimizer": None}, "optimizer: this block is required"),
        ({"optimizer": {"type": "Adamw"}}, "optimizer.type: 'Adamw' is not supported; did you mean 'AdamW'?"),
        ({"optimizer": {"type": "AdamW", "params": []}}, "optimizer.params: write an object"),
        ({"optimizer": {"type": "AdamW", "params": {"learning_rate": 1}}}, "'optimizer.params.learning_rate'"),
        ({"optimizer": {"type": "AdamW", "params": {"lr": 0}}}, "optimizer.params.lr: give the peak learning rate"),
        (
            {"optimizer": {"type": "Lamb", "params": {"lr": 1e-3}}, "zero_optimization": {"stage": 1}},
            "Lamb needs whole parameters for its trust ratio",
        ),
        ({"activation_checkpointing": {"cpu_checkpointing": True}}, "activation_checkpointing.cpu_checkpointing"),
        (
            {"zero_optimization": {"stage": 1, "compute_grad_norm": False}},
            "compute_grad_norm false: a gradient that is",
        ),
        (
            {"bf16": {"enabled": True, "check_grad_overflow": False}, "zero_optimization": {"stage": 1}},
            "bf16.check_grad_overflow false: a gradient that is not finite would spoil the weights; remove the setting",
        ),
        ({"train_batch_size": 0}, "train_batch_size: a positive whole number is required, not 0"),
        ({"train_micro_batch_size_per_gpu": 1.5}, "train_micro_batch_size_per_gpu: a positive whole number"),
    ],
)
def test_bad_value(write, change, message):
    path = write({**VALID, **change})
    with pytest.raises(ConfigError) as error:
        load_ds_config(path, 1)
    assert str(error.value).startswith(f"{path}: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_without_micro_batch_a_rank_takes_its_whole_share(write):
    batch = {key: value for key, value in VALID.items() if key != "train_micro_batch_size_per_gpu"}
    config = load_ds_config(write({**batch, "train_batch_size": 24}), 3)
    assert (config.micro_batch, config.accumulation_steps) == (8, 1)
    with pytest.raises(
        ConfigError, match="train_batch_size 24 cannot be divided among 5 ranks; the next larger one is 25"
    ):
        load_ds_config(write({**batch, "train_batch_size": 24}), 5)


def test_indivisible_batch_names_micro_batches_that_fit(write):
    path = write({**VALID, "train_batch_size": 24, "train_micro_batch_size_per_gpu": 5})
    with pytest.raises(ConfigError, match="micro batches that fit: 1, 2, 3, 4, 6, 12"):
        load_ds_config(path, 2)


def test_batch_that_does_not_divide_over_ranks_names_the_next(write):
    with pytest.raises(ConfigError, match="cannot be divided among 3 ranks; the next larger one is 24"):
        load_ds_config(write(VALID), 3)


@pytest.mark.parametrize("total", [1, 7, 16, 100, 1396])
@pytest.mark.parametrize("micro", [1, 3, 4])
@pytest.mark.parametrize("ranks", [1, 2, 5, 11])
def test_the_advice_for_a_batch_that_does_not_divide_is_accepted(write, total, micro, ranks):
    values = {**VALID, "train_batch_size": total, "train_micro_batch_size_per_gpu": micro}
    try:
        load_ds_config(write(values), ranks)
    except ConfigError as error:
        if "the next larger one is " in str(error):
            values["train_batch_size"] = int(str(error).rpartition(" ")[2])
            assert values["train_batch_size"] > total
        else:
            values["train_micro_batch_size_per_gpu"] = int(str(error).rpartition(", ")[2].rpartition(" ")[2])
        load_ds_config(write(values), ranks)


def test_all_faults_are_named_at_once(write):
    with pytest.raises(ConfigError, match=r"'scheduler'.*'foo'.*optimizer: this block"):
        load_ds_config(write({"scheduler": {}, "foo": 1}), 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON at line 1"),
        ("[]", "a DeepSpeed JSON holds an object at the top level"),
        ('{"a": 1, "a": 2}', "'a' is given twice; keep one"),
        (b"\xff", "cannot be read as a DeepSpeed JSON"),
    ],
)
def test_unreadable_json(tmp_path, text, message):
    path = tmp_path / "ds.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=message):
        load_ds_config(path, 1)


def test_missing_json_names_the_way_out(tmp_path):
    with pytest.raises(ConfigError, match="no such DeepSpeed JSON; `bnb-ds recipes` lists the shipped ones"):
        load_ds_config(tmp_path / "none.json", 1)
