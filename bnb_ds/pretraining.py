"""A pre-training run, put together from its recipe and its DeepSpeed JSON."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from bnb_ds import checkpoint, distributed, report
from bnb_ds.batch import PackedBatch
from bnb_ds.config import ObjectiveSection, PretrainRecipe, load_recipe
from bnb_ds.corruption import Corruption
from bnb_ds.ds_config import DsConfig, load_ds_config
from bnb_ds.encoder_mlm import BnbForPretraining
from bnb_ds.engine import build_engine
from bnb_ds.errors import DataError
from bnb_ds.evaluation import evaluate
from bnb_ds.flops import TRAINING_FACTOR, forward_flops
from bnb_ds.hardware import peak_flops
from bnb_ds.loader import StepLoader
from bnb_ds.model_factory import build_model, model_config
from bnb_ds.modeling import BnbConfig, BnbForConditionalGeneration
from bnb_ds.objectives import Objective, Reconstruction, ReconstructionAndEncoderMlm
from bnb_ds.outputs import disk_errors
from bnb_ds.run_dir import RunDir
from bnb_ds.samples import PretrainSamples
from bnb_ds.schedule import learning_rate_multiplier
from bnb_ds.shards import TokenShards
from bnb_ds.tokenization import continuation_pieces, load_tokenizer, save_tokenizer, tokenizer_hash
from bnb_ds.tracking import Tracker
from bnb_ds.train_loop import LoopSettings, TrainLoop


@dataclass(frozen=True)
class Plan:
    """Everything that follows from the settings before a model exists."""

    recipe: PretrainRecipe
    ds_config: DsConfig
    train_shards: TokenShards
    heldout_shards: TokenShards

    def samples(self, shards: TokenShards, config: BnbConfig) -> PretrainSamples:
        """The samples of one split, with the recipe's noise."""
        objective = self.recipe.objective
        continues_word = None
        if objective.whole_word:
            continues_word = continuation_pieces(load_tokenizer(shards.tokenizer_dir), shards.vocab_size)
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
            config=config,
        )

    def total_steps(self, samples_per_epoch: int) -> int:
        """Steps of the whole run."""
        if self.recipe.steps is not None:
            return self.recipe.steps
        return max(math.ceil(self.recipe.epochs * samples_per_epoch / self.ds_config.global_batch), 1)


def make_plan(recipe_path: str, overrides: list[str], ds_config_path: str, world_size: int) -> Plan:
    """Load and check all settings and open the data.

    Raises:
        ConfigError, DataError: naming file and field, before any GPU is touched.
    """
    recipe = load_recipe(recipe_path, overrides)
    ds_config = load_ds_config(ds_config_path, world_size)
    train_shards = TokenShards(recipe.data.shards, "train")
    heldout_shards = TokenShards(recipe.data.shards, "heldout")
    for name, shards in (("training", train_shards), ("held-out", heldout_shards)):
        if len(shards) == 0:
            raise DataError(
                f"data.shards {recipe.data.shards}: holds no {name} documents; prepare it with another --holdout"
            )
    if tokenizer_hash(load_tokenizer(train_shards.tokenizer_dir)) != train_shards.tokenizer_hash:
        raise DataError(
            f"{train_shards.tokenizer_dir}: not the tokenizer that the manifest names; restore it, or prepare the"
            " shards again"
        )
    return Plan(recipe, ds_config, train_shards, heldout_shards)


def describe_dry_run(plan: Plan) -> list[str]:
    """What a run would do and need, without touching a GPU: the model is built on the meta device."""
    config = model_config(plan.recipe.model, plan.train_shards, plan.recipe.data.max_length)
    with torch.device("meta"):
        num_parameters = report.count_parameters(_model_class(plan.recipe.objective)(config))
    num_samples = len(plan.samples(plan.train_shards, config))
    return [
        *report.derived(plan, config, num_parameters, num_samples, plan.total_steps(num_samples)),
        *report.memory(
            config,
            num_parameters,
            plan.ds_config,
            plan.recipe.data.max_length,
            plan.recipe.loader.micro_batch_tokens,
        ),
    ]


def pretrain(plan: Plan, *, resume: str = "never", stop_at: int | None = None) -> None:
    """Run pre-training in this process, one of ``plan.ds_config.world_size`` ranks.

    Args:
        plan: checked settings.
        resume: ``never``, ``auto`` or a path; see :meth:`bnb_ds.run_dir.RunDir.find_resume`.
        stop_at: end this launch after that step, with a checkpoint; the schedule stays that of the whole run.
    """
    device = distributed.init()
    try:
        _pretrain(plan, device, resume, stop_at)
    except BaseException:
        distributed.shutdown(after_error=True)
        raise
    distributed.shutdown()


def _pretrain(plan: Plan, device: torch.device, resume: str, stop_at: int | None) -> None:
    recipe, ds_config = plan.recipe, plan.ds_config
    run = RunDir(recipe, ds_config, plan.train_shards.fingerprint)
    found, notes = distributed.on_main(lambda: run.find_resume(resume))
    # The weights of a new run are a pure function of the seed, the same on every rank.
    torch.manual_seed(recipe.seed)
    model = build_model(recipe.model, plan.train_shards, recipe.data.max_length, _model_class(recipe.objective))
    train, heldout = (plan.samples(shards, model.config) for shards in (plan.train_shards, plan.heldout_shards))
    total_steps = plan.total_steps(len(train))
    stop_step = min(stop_at or total_steps, total_steps)
    num_parameters = report.count_parameters(model)  # before ZeRO stage 3 takes them apart
    multiplier = learning_rate_multiplier(total_steps, **recipe.schedule.model_dump())
    engine, kernels = build_engine(model, ds_config, device, multiplier)
    start_step, samples_consumed = 0, 0
    if found is not None:
        state = checkpoint.load(engine, found)
        start_step, samples_consumed = state["step"], state["samples_consumed"]
    distributed.on_main(lambda: _prepare_run_dir(run, model, plan.train_shards, start_step))
    peak, peak_source = peak_flops(device, ds_config.precision)
    tracker = Tracker(run.tensorboard, start_step=start_step, total_steps=total_steps)
    for line in (
        *notes,
        *report.derived(plan, model.config, num_parameters, len(train), total_steps),
        f"kernels      {kernels}",
        f"peak         {peak / 1e12:.3g} TFLOP/s per rank ({peak_source})",
        f"start        step {start_step}{f', from {found}' if found else ''}; this launch ends at step {stop_step}",
    ):
        tracker.say(line)
    loop = TrainLoop(
        engine,
        _loader(train, plan, device),
        _objective(recipe.objective),
        _evaluation(engine, heldout, plan, device),
        tracker,
        _loop_settings(recipe, total_steps, stop_step),
        checkpoints=run.checkpoints,
        device=device,
        batch_flops=_training_flops(model.config),
        peak_flops=peak,
    )
    reached = loop.run(start_step, samples_consumed)
    tracker.say(f"done         step {reached} of {total_steps}; watch with: tensorboard --logdir {run.tensorboard}")
    tracker.close()


def _model_class(section: ObjectiveSection) -> type[BnbForConditionalGeneration]:
    return BnbForPretraining if section.encoder_mlm_weight else BnbForConditionalGeneration


def _objective(section: ObjectiveSection) -> Objective:
    if section.encoder_mlm_weight:
        return ReconstructionAndEncoderMlm(section.encoder_mlm_weight)
    return Reconstruction()


def _loader(train: PretrainSamples, plan: Plan, device: torch.device) -> StepLoader:
    return StepLoader(
        train,
        seed=plan.recipe.seed,
        micro_batch=plan.ds_config.micro_batch,
        accumulation_steps=plan.ds_config.accumulation_steps,
        rank=distributed.rank(),
        world_size=plan.ds_config.world_size,
        device=device,
        **plan.recipe.loader.model_dump(),
    )


def _evaluation(
    engine: Any, heldout: PretrainSamples, plan: Plan, device: torch.device
) -> Callable[[], dict[str, float]]:
    def run_evaluation() -> dict[str, float]:
        return evaluate(
            engine,
            heldout,
            num_samples=plan.recipe.intervals.eval_samples,
            micro_batch=plan.ds_config.micro_batch,
            device=device,
        )

    return run_evaluation


def _loop_settings(recipe: PretrainRecipe, total_steps: int, stop_step: int) -> LoopSettings:
    intervals = recipe.intervals
    return LoopSettings(
        total_steps=total_steps,
        stop_step=stop_step,
        log_steps=intervals.log_steps,
        eval_steps=intervals.eval_steps,
        checkpoint_steps=intervals.checkpoint_steps,
        keep_checkpoints=intervals.keep_checkpoints,
        seed=recipe.seed,
    )


def _training_flops(config: BnbConfig) -> Callable[[PackedBatch], int]:
    def training_flops(batch: PackedBatch) -> int:
        return TRAINING_FACTOR * forward_flops(config, batch.source_lengths, batch.decoder_lengths)

    return training_flops


def _prepare_run_dir(run: RunDir, model: BnbForConditionalGeneration, shards: TokenShards, start_step: int) -> None:
    with disk_errors(run.path):
        # What an export needs besides the weights, so that it needs no shards.
        model.config.save_pretrained(run.model)
        save_tokenizer(load_tokenizer(shards.tokenizer_dir), run.model)
    run.record_launch(start_step)
