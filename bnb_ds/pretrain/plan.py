"""The plan of a pre-training run, made from its recipe and DeepSpeed JSON before any GPU is used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from bnb_ds.checkpoint.run_dir import RunDir
from bnb_ds.checkpoint.start import Attempt, Start, at_once, briefly_held, check_output, find_start
from bnb_ds.config.deepspeed import DsConfig, load_ds_config
from bnb_ds.config.loading import load_recipe
from bnb_ds.config.sections import ObjectiveSection, PretrainRecipe
from bnb_ds.data.corruption import NEEDS_MASK, NO_TOKEN, Corruption
from bnb_ds.data.misfits import count_misfits, length_lines, misfit_lines, refuse_misfits
from bnb_ds.data.samples import PretrainSamples
from bnb_ds.data.streams import quotas
from bnb_ds.data.subwords.rules import piece_rules
from bnb_ds.data.tokenization import load_tokenizer, tokenizer_hash
from bnb_ds.distributed import ranks
from bnb_ds.errors import ConfigError, DataError
from bnb_ds.loggers.choice import find_loggers
from bnb_ds.model.configuration import BnbConfig
from bnb_ds.model.students.layer_choice import depth_line
from bnb_ds.model.target_rules import BnbTargetRules, check_glancing, check_mixed_training
from bnb_ds.model_factory import model_config, refuse_equal_slots
from bnb_ds.modeling import BnbForConditionalGeneration, BnbForPretraining
from bnb_ds.shards.manifest import SPLITS
from bnb_ds.shards.mixed import Corpus, MixedShards, parts_of
from bnb_ds.shards.reader import TokenShards
from bnb_ds.train import estimates
from bnb_ds.train.launch import NEW_RUN, Launch

#: samples of a split, evenly spaced, whose targets a launch compares with their slots
_MISFIT_SAMPLES = 512


@dataclass(frozen=True)
class PretrainPlan:
    """Checked settings and opened data. No model exists yet."""

    recipe: PretrainRecipe
    ds_config: DsConfig
    train_shards: Corpus
    heldout_shards: Corpus
    #: the tokenizer of the shards
    tokenizer: PreTrainedTokenizerFast

    def samples(self, shards: Corpus, config: BnbConfig) -> PretrainSamples:
        """The samples of one split, corrupted as the recipe says."""
        objective = self.recipe.objective
        corruption = Corruption(
            mask_probability=objective.mask_probability,
            permute_probability=objective.permute_probability,
            mask_id=shards.special_ids.get("mask", NO_TOKEN),
            vocab_size=shards.vocab_size,
            mixture=objective.mixture,
            # The only special token that occurs in documents.
            special_ids=tuple(index for name, index in shards.special_ids.items() if name == "unk"),
            word_starts=piece_rules(self.tokenizer, shards.vocab_size).starts if objective.whole_word else None,
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
        """Optimizer steps of the whole run."""
        return self.recipe.total_steps(samples_per_epoch, self.ds_config.global_batch)


def make_plan(recipe_path: str, overrides: list[str], ds_config_path: str, world_size: int) -> PretrainPlan:
    """Load and check all settings, and open the data.

    Raises:
        ConfigError, DataError: a setting is wrong or the data cannot be used. The message names file and field.
    """
    recipe = load_recipe(recipe_path, overrides)
    find_loggers(recipe.tracking.loggers)
    ds_config = load_ds_config(ds_config_path, world_size)
    return PretrainPlan(recipe, ds_config, *open_shards(recipe))


def open_shards(recipe: PretrainRecipe) -> tuple[Corpus, Corpus, PreTrainedTokenizerFast]:
    """Open the training documents, the held-out documents and their tokenizer.

    Raises:
        DataError: one of them is missing, damaged or empty; or several directories cannot be mixed.
        ConfigError: the objective masks, and the tokenizer has no mask token.
    """
    train_shards, heldout_shards = (_open(recipe.data.shards, split) for split in SPLITS)
    for name, shards in (("training", train_shards), ("held-out", heldout_shards)):
        for part in parts_of(shards):
            if len(part) == 0:
                raise DataError(
                    f"data.shards {part.directory}: holds no {name} documents; prepare it with another --holdout"
                )
    tokenizer = load_tokenizer(train_shards.tokenizer_dir)
    if tokenizer_hash(tokenizer) != train_shards.tokenizer_hash:
        raise DataError(
            f"{train_shards.tokenizer_dir}: this is not the tokenizer that the shards were made with; restore it, or"
            " prepare the data again"
        )
    if "mask" not in train_shards.special_ids:
        for name, weight in recipe.objective.mixture.items():
            if weight and NEEDS_MASK.intersection(name.split("+")):
                raise ConfigError(
                    f"objective.corruption {name}: needs a mask token, and the tokenizer of data.shards has none; use"
                    " ae, plm or clm, or name one in tokenizer_config.json and prepare the data again"
                )
    return train_shards, heldout_shards, tokenizer


def _open(named: str | dict[str, float], split: str) -> Corpus:
    if isinstance(named, dict) and len(named) > 1:
        return MixedShards(named, split)
    (directory,) = named if isinstance(named, dict) else (named,)
    return TokenShards(directory, split)


def configuration(recipe: PretrainRecipe, shards: Corpus) -> BnbConfig:
    """The configuration of the model that a recipe trains on these shards. No weights are made or read.

    Raises:
        ConfigError, DataError, CheckpointError: as `bnb_ds.model_factory.model_config`; or the model cannot be trained
            with the recipe's glancing or mixed training.
    """
    config = model_config(recipe.model, shards, recipe.data.max_length)
    if not config.has_decoder and recipe.objective.encoder_mlm_weight:
        raise ConfigError(
            f"objective.encoder_mlm_weight {recipe.objective.encoder_mlm_weight}: without a decoder, the encoder"
            " predicts the target itself; set it to 0"
        )
    if recipe.glancing is not None:
        check_glancing(config, recipe.glancing.mask_predict)
    if recipe.mixed_training is not None:
        check_mixed_training(config)
    return config


@dataclass(frozen=True)
class Decision:
    """A launch that may begin.

    Attributes:
        start: where it begins.
        config: of the model.
        num_parameters: trainable parameters of the model.
        train, heldout: the samples.
        about_slots: lines for the user.
    """

    start: Start
    config: BnbConfig
    num_parameters: int
    train: PretrainSamples
    heldout: PretrainSamples
    about_slots: list[str]


def run_directory(plan: PretrainPlan) -> RunDir:
    """The directory of the run, ``output_dir`` of its recipe."""
    return RunDir(plan.recipe, plan.ds_config, plan.train_shards.fingerprint)


def decide(
    plan: PretrainPlan, launch: Launch, attempt: Attempt = at_once, progress: Callable[[], None] = lambda: None
) -> Decision | None:
    """Decide whether a launch may begin; the same on every rank. No weights are made or read.

    Args:
        plan: the plan of the run.
        launch: the flags.
        attempt: how each part is decided.
        progress: called now and then on rank 0, while the other ranks wait.

    Returns:
        The decision; None after an error that ``attempt`` noted.

    Raises:
        ConfigError, DataError, CheckpointError: the launch may not begin; the message says why.
    """
    run, recipe = run_directory(plan), plan.recipe
    config = attempt("model", lambda: configuration(recipe, plan.train_shards))
    num_parameters = None if config is None else count_parameters(recipe.objective, config)
    attempt(f"output_dir {recipe.output_dir}", lambda: check_output(recipe, num_parameters))
    if config is None or num_parameters is None:
        return None
    train, heldout = (plan.samples(shards, config) for shards in (plan.train_shards, plan.heldout_shards))
    start = attempt("resume", lambda: find_start(run, plan.total_steps(len(train)), **launch.resume_flags))
    if start is not None and start.resume is None:
        attempt("settings of a new model", lambda: refuse_equal_slots(recipe.model, config))
    about_slots = attempt("decoder slots", lambda: targets_that_do_not_fit(train, heldout, progress))
    if start is None or about_slots is None:
        return None
    return Decision(start, config, num_parameters, train, heldout, about_slots)


def describe_dry_run(plan: PretrainPlan, launch: Launch = NEW_RUN) -> list[str]:
    """Lines that describe a run and its memory. No GPU is used: the model is built on the meta device.

    Raises:
        ConfigError, DataError, CheckpointError: the launch would be refused, with this message.
    """
    with briefly_held(run_directory(plan).path):
        decision = decide(plan, launch)
    assert decision is not None  # the first error has ended it
    return describe_decision(plan, decision)


def describe_decision(plan: PretrainPlan, decision: Decision) -> list[str]:
    """The same lines, of a launch that may begin."""
    return [
        *describe_plan(plan, decision.config, decision.num_parameters, decision.train),
        *decision.about_slots,
        *estimates.memory(
            decision.config,
            decision.num_parameters,
            plan.ds_config,
            plan.recipe.data.max_length,
            plan.recipe.loader.micro_batch_tokens,
        ),
        f"start        {decision.start.describe(plan.ds_config)}",
    ]


def model_class(section: ObjectiveSection) -> type[BnbForConditionalGeneration]:
    """The model class that an objective needs."""
    return BnbForPretraining if section.encoder_mlm_weight else BnbForConditionalGeneration


def count_parameters(section: ObjectiveSection, config: BnbConfig) -> int:
    """Number of trainable parameters of the model. No weights are allocated."""
    with torch.device("meta"):
        return estimates.count_parameters(model_class(section)(config))


def targets_that_do_not_fit(
    train: PretrainSamples, heldout: PretrainSamples, progress: Callable[[], None] = lambda: None
) -> list[str]:
    """Lines that say how many samples hold a target that does not fit into the decoder's slots; the same on every rank.

    Samples are read on rank 0, which calls ``progress`` now and then. Of each split, `_MISFIT_SAMPLES` are looked at.

    Raises:
        ConfigError: more than half of the samples of a split hold one.
        DataError: a shard cannot be read.
    """

    def lines() -> list[str]:
        found, lengths = {}, {}
        settings: dict[str, Any] = {"most": _MISFIT_SAMPLES, "chunk": 32, "progress": progress}
        for name, samples in (("train", train), ("heldout", heldout)):
            found[name] = count_misfits(samples.num_infeasible, len(samples), **settings)
            lengths[name] = count_misfits(samples.num_without_length, len(samples), **settings)
        refuse_misfits(found)
        return [*misfit_lines(found), *length_lines(lengths)]

    return ranks.on_main(lines)


def describe_plan(plan: PretrainPlan, config: BnbConfig, num_parameters: int, train: PretrainSamples) -> Iterator[str]:
    """Lines that describe a run.

    Args:
        plan: the plan of the run.
        config: of the model.
        num_parameters: trainable parameters of the model.
        train: training samples.
    """
    ds_config, data = plan.ds_config, plan.recipe.data
    num_samples, parts = len(train), parts_of(plan.train_shards)
    weights = getattr(plan.train_shards, "weights", (1,))
    numbers = quotas(num_samples, weights)
    tokens_read = sum(
        number * part.num_tokens / size for number, part, size in zip(numbers, parts, train.sizes, strict=True)
    )
    mean_length = tokens_read / num_samples + 2
    between = f"latent {config.latent_size}" if config.has_decoder else "no decoder"
    yield f"model        {num_parameters / 1e6:.2f}M parameters, {between}"
    if (layers := depth_line(config)) is not None:
        yield layers
    yield (
        f"data         {len(plan.train_shards):,} training documents, {plan.train_shards.num_tokens:,} tokens,"
        f" {num_samples:,} samples per epoch; {len(plan.heldout_shards):,} held-out documents"
    )
    if len(parts) > 1:
        for weight, number, part, size in zip(weights, numbers, parts, train.sizes, strict=True):
            yield (
                f"             {weight / sum(weights):.1%} of the samples are of {part.directory}: {number:,} an epoch,"
                f" so that each of its {size:,} is read {number / size:.2f} times"
            )
    tokens = ds_config.global_batch * min(mean_length, data.max_length)
    yield f"{estimates.batch_line(ds_config, plan.recipe.loader)}; about {tokens:,.0f} tokens per step"
    yield estimates.steps_line(ds_config, num_samples, plan.total_steps(num_samples))
    objective = plan.recipe.objective
    mixture = ", ".join(
        name if len(objective.mixture) == 1 else f"{weight:g} {name}" for name, weight in objective.mixture.items()
    )
    if objective.encoder_mlm_weight:
        mixture += f", {objective.encoder_mlm_weight:g} encoder mlm"
    yield f"objective    {mixture}, sequences {data.sequence} at {data.max_length} tokens"
