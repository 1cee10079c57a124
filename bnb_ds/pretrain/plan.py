"""What a pre-training run will be, worked out from its recipe and its DeepSpeed JSON before any GPU is touched."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from transformers import BertTokenizerFast

from bnb_ds.config.deepspeed import DsConfig, load_ds_config
from bnb_ds.config.loading import load_recipe
from bnb_ds.config.sections import ObjectiveSection, PretrainRecipe
from bnb_ds.data.corruption import Corruption
from bnb_ds.data.samples import PretrainSamples
from bnb_ds.data.tokenization import continuation_pieces, load_tokenizer, tokenizer_hash
from bnb_ds.errors import DataError
from bnb_ds.model.configuration import BnbConfig
from bnb_ds.model.target_rules import BnbTargetRules
from bnb_ds.model_factory import model_config
from bnb_ds.modeling import BnbForConditionalGeneration, BnbForPretraining
from bnb_ds.shards.reader import TokenShards
from bnb_ds.train import estimates


@dataclass(frozen=True)
class PretrainPlan:
    """Everything that follows from the settings before a model exists."""

    recipe: PretrainRecipe
    ds_config: DsConfig
    train_shards: TokenShards
    heldout_shards: TokenShards
    #: the one that the shards were made with
    tokenizer: BertTokenizerFast

    def samples(self, shards: TokenShards, config: BnbConfig) -> PretrainSamples:
        """The samples of one split, with the recipe's noise."""
        objective = self.recipe.objective
        continues_word = None
        if objective.whole_word:
            continues_word = continuation_pieces(self.tokenizer, shards.vocab_size)
        corruption = Corruption(
            mask_probability=objective.mask_probability,
            permute_probability=objective.permute_probability,
            mask_id=shards.special_ids["mask"],
            vocab_size=shards.vocab_size,
            mixture=objective.mixture,
            special_ids=(shards.special_ids["unk"],),  # the only one that documents hold
            continues_word=continues_word,
        )
        data = self.recipe.data
        return PretrainSamples(
            shards,
            sequence=data.sequence,
            max_length=data.max_length,
            corruption=corruption,
            seed=self.recipe.seed,
            rules=BnbTargetRules(config),
        )

    def total_steps(self, samples_per_epoch: int) -> int:
        """Steps of the whole run."""
        return self.recipe.total_steps(samples_per_epoch, self.ds_config.global_batch)


def make_plan(recipe_path: str, overrides: list[str], ds_config_path: str, world_size: int) -> PretrainPlan:
    """Load and check all settings and open the data.

    Raises:
        ConfigError, DataError: naming file and field, before any GPU is touched.
    """
    recipe = load_recipe(recipe_path, overrides)
    ds_config = load_ds_config(ds_config_path, world_size)
    return PretrainPlan(recipe, ds_config, *open_shards(recipe))


def open_shards(recipe: PretrainRecipe) -> tuple[TokenShards, TokenShards, BertTokenizerFast]:
    """Training documents, held-out documents, and their tokenizer.

    Raises:
        DataError: they are missing or damaged, or one part is empty.
    """
    train_shards = TokenShards(recipe.data.shards, "train")
    heldout_shards = TokenShards(recipe.data.shards, "heldout")
    for name, shards in (("training", train_shards), ("held-out", heldout_shards)):
        if len(shards) == 0:
            raise DataError(
                f"data.shards {recipe.data.shards}: holds no {name} documents; prepare it with another --holdout"
            )
    tokenizer = load_tokenizer(train_shards.tokenizer_dir)
    if tokenizer_hash(tokenizer) != train_shards.tokenizer_hash:
        raise DataError(
            f"{train_shards.tokenizer_dir}: not the tokenizer that the manifest names; restore it, or prepare the"
            " shards again"
        )
    return train_shards, heldout_shards, tokenizer


def describe_dry_run(plan: PretrainPlan) -> list[str]:
    """What a run would do and need, without touching a GPU: the model is built on the meta device."""
    config = model_config(plan.recipe.model, plan.train_shards, plan.recipe.data.max_length)
    num_parameters = count_parameters(plan.recipe.objective, config)
    num_samples = len(plan.samples(plan.train_shards, config))
    return [
        *describe_plan(plan, config, num_parameters, num_samples),
        *estimates.memory(
            config,
            num_parameters,
            plan.ds_config,
            plan.recipe.data.max_length,
            plan.recipe.loader.micro_batch_tokens,
        ),
    ]


def model_class(section: ObjectiveSection) -> type[BnbForConditionalGeneration]:
    """The class that has the heads an objective needs."""
    return BnbForPretraining if section.encoder_mlm_weight else BnbForConditionalGeneration


def count_parameters(section: ObjectiveSection, config: BnbConfig) -> int:
    """Trainable parameters of the model, without making any weights."""
    with torch.device("meta"):
        return estimates.count_parameters(model_class(section)(config))


def describe_plan(plan: PretrainPlan, config: BnbConfig, num_parameters: int, num_samples: int) -> Iterator[str]:
    """Lines that say what a run will do."""
    ds_config, data = plan.ds_config, plan.recipe.data
    mean_length = plan.train_shards.num_tokens / num_samples + 2
    yield f"model        {num_parameters / 1e6:.2f}M parameters, latent {config.latent_size}"
    yield (
        f"data         {len(plan.train_shards):,} training documents, {plan.train_shards.num_tokens:,} tokens,"
        f" {num_samples:,} samples an epoch; {len(plan.heldout_shards):,} documents held out"
    )
    tokens = ds_config.global_batch * min(mean_length, data.max_length)
    yield f"{estimates.batch_line(ds_config, plan.recipe.loader)}; about {tokens:,.0f} tokens a step"
    yield estimates.steps_line(ds_config, num_samples, plan.total_steps(num_samples))
    objective = plan.recipe.objective
    mixture = ", ".join(
        name if len(objective.mixture) == 1 else f"{weight:g} {name}" for name, weight in objective.mixture.items()
    )
    if objective.encoder_mlm_weight:
        mixture += f", {objective.encoder_mlm_weight:g} encoder mlm"
    yield f"objective    {mixture}, sequences {data.sequence} at {data.max_length} tokens"
