"""Every shipped DeepSpeed JSON and recipe can be planned; ds_configs/README.md shows the memory that is planned."""

from __future__ import annotations

import itertools
import re

import pytest
import torch
import yaml
from transformers import BertConfig, BertModel

from bnb_ds.config.deepspeed import load_ds_config
from bnb_ds.config.model_section import ModelSize
from bnb_ds.modeling import BnbConfig, BnbForConditionalGeneration
from bnb_ds.pretrain.plan import describe_dry_run, make_plan
from bnb_ds.train import estimates
from tests.launching import REPOSITORY

DS_CONFIGS = sorted((REPOSITORY / "ds_configs").glob("*.json"))
FOLDER = REPOSITORY / "runs" / "recipes"
RECIPES = [*sorted((FOLDER / "pretrain").glob("*.yaml")), FOLDER / "paper" / "wikipedia.yaml"]
README = (REPOSITORY / "ds_configs" / "README.md").read_text(encoding="utf-8")

# The paper starts from BERT's cased vocabulary; sizes are those of BERT (Devlin et al., 2019).
VOCABULARY = 28_996
SIZES = {
    "base": ModelSize(),
    "large": ModelSize(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096),
}
CLUSTERS = {"v100": (8, 128), "a100": (8, 128), "h100": (8, 64)}
#: GPUs of the jobs of the paper's code: nodes of 8, but for GLUE
PAPER_GPUS = {"paper_pretrain": 16, "paper_xsum": 8, "paper_qg": 8, "paper_translation": 16, "paper_glue": 1}
MAX_LENGTH = 512
GIB = 2**30


def plan_of_size(size: ModelSize) -> tuple[BnbConfig, int]:
    bert = {**size.model_dump(), "vocab_size": VOCABULARY}
    config = BnbConfig(encoder=bert, decoder=bert, decoder_positions="shared")
    with torch.device("meta"):
        return config, estimates.count_parameters(BnbForConditionalGeneration(config))


def table() -> str:
    """GiB per GPU, from the functions behind `--dry-run`."""
    rows = ["| JSON | GPUs | base: states + activations | large: states + activations |", "|---|---|---|---|"]
    sizes = {name: plan_of_size(size) for name, size in SIZES.items()}
    for path in DS_CONFIGS:
        for ranks in CLUSTERS.get(path.stem.partition("_")[0], ()):
            ds_config = load_ds_config(path, ranks)
            cells = []
            for config, num_parameters in sizes.values():
                states = (estimates.state_bytes(num_parameters, ds_config) + estimates.buffer_bytes(ds_config)) / GIB
                activations = estimates.activation_bytes(config, ds_config, MAX_LENGTH, ds_config.micro_batch) / GIB
                cells.append(f"{states:.1f} + {activations:.1f} = {states + activations:.1f}")
            rows.append(f"| `{path.stem}` | {ranks} | {cells[0]} | {cells[1]} |")
    return "\n".join(rows)


@pytest.mark.parametrize(
    "path",
    [path for path in DS_CONFIGS if path.stem.partition("_")[0] in (*CLUSTERS, "finetune", "quickstart")],
    ids=lambda path: path.stem,
)
def test_buffers_are_smaller_than_the_gradients_of_a_base_model(path):
    """DeepSpeed's default is larger: it takes a GiB or more, and overlap_comm then sends nothing before the end."""
    ds_config = load_ds_config(path, 1)
    if ds_config.zero_stage:
        _, num_parameters = plan_of_size(SIZES["base"])
        assert ds_config.values["zero_optimization"]["reduce_bucket_size"] < num_parameters / 4
        assert estimates.buffer_bytes(ds_config) <= 0.2 * GIB


def test_the_table_is_what_the_dry_run_says():
    assert table() in README, "the table should be:\n" + table()


@pytest.mark.parametrize("path", DS_CONFIGS, ids=lambda path: path.stem)
def test_every_json_is_explained(path):
    assert re.search(rf"^\| `{path.stem}` \| [^|]{{20,}}", README, re.MULTILINE), f"{path.stem} is not explained"


def test_every_json_that_is_explained_is_there():
    named = set(re.findall(r"^\| `(\w+)` \|", README, re.MULTILINE))
    assert named == {path.stem for path in DS_CONFIGS}


@pytest.fixture(scope="module")
def starting_points(tmp_path_factory, small_tokenizer):
    """A local BERT checkpoint for the recipes that would otherwise read one from the hub."""
    folder = tmp_path_factory.mktemp("bert")
    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=len(small_tokenizer), **size)).save_pretrained(folder)
    small_tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("recipe", "ds_config"),
    [
        *itertools.product(RECIPES, [REPOSITORY / "ds_configs" / "a100_bf16_zero2.json"]),
        *itertools.product([REPOSITORY / "runs" / "recipes" / "pretrain" / "wikipedia_base.yaml"], DS_CONFIGS),
    ],
    ids=lambda path: path.stem,
)
def test_every_shipped_pair_is_planned(recipe, ds_config, small_shards, starting_points, tmp_path):
    overrides = [f"data.shards={small_shards}", f"output_dir={tmp_path / 'out'}"]
    if "encoder" in yaml.safe_load(recipe.read_text())["model"]:
        overrides.append(f"model.encoder={starting_points}")
    kind = ds_config.stem.partition("_")[0]
    ranks = PAPER_GPUS.get(ds_config.stem) or {"cpu": 2, "quickstart": 2, "finetune": 8}.get(kind, 64)
    lines = "\n".join(describe_dry_run(make_plan(str(recipe), overrides, str(ds_config), ranks)))
    assert f" micro steps x {ranks} ranks" in lines
    assert "memory/GPU   about" in lines
    assert not (tmp_path / "out").exists()
