"""The sections of a recipe as typed, validated, immutable classes; :mod:`bnb_ds.config.loading` reads the YAML.

A recipe holds every setting that DeepSpeed does not read: model, data, objective, steps, schedule, seed, intervals and
output directory. Batch sizes, precision, ZeRO, clipping, optimizer and peak learning rate are set only in the DeepSpeed
JSON (:mod:`bnb_ds.config.deepspeed`). Every field below states its unit and its default.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from bnb_ds.config.model_section import ModelSection
from bnb_ds.config.section import Probability, Section
from bnb_ds.data.corruption import OBJECTIVES
from bnb_ds.data.sequences import Building
from bnb_ds.errors import nearest


class DataSection(Section):
    """The source of the samples, and their length."""

    #: a directory of ``bnb-ds prep``, or several with weights: ``{work/shards/wikipedia: 3, work/shards/pubmed: 1}``.
    #: Each then has its share of the samples of every epoch, which is as long as all of them together
    shards: str | dict[str, float]
    #: truncate: keep the first ``max_length - 2`` tokens of a document, as in the paper; chunk: cut documents into
    #: pieces, so that every token is used; pack: put as many chunks into one sample as fit, with separate attention
    sequence: Building = "truncate"
    #: tokens of a sequence, including [CLS] and [SEP]; with pack, of all sequences of a sample together
    max_length: Annotated[int, Field(ge=3, le=2**16)] = 512

    @field_validator("shards", mode="plain")
    @classmethod
    def _directories(cls, value: Any) -> str | dict[str, float]:
        if isinstance(value, str):
            return value
        if not isinstance(value, dict) or not value:
            raise ValueError("give a directory, or several with weights: {work/shards/a: 3, work/shards/b: 1}")
        for name, weight in value.items():
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
                raise ValueError(f"the weight of {name} is {weight!r}: give a number above 0, or leave it out")
        return {str(name): float(weight) for name, weight in value.items()}


class LoaderSection(Section):
    """How samples are loaded and grouped. These settings never change which samples a step sees, nor their order."""

    #: most real source tokens of a micro batch; None: micro batches have the JSON's number of samples. With a limit, a
    #: step takes as many micro steps as it needs and still has ``train_batch_size`` samples
    micro_batch_tokens: Annotated[int, Field(gt=0)] | None = None
    #: threads per rank that prepare batches
    workers: Annotated[int, Field(gt=0)] = 1
    #: most steps prepared ahead
    prefetch_steps: Annotated[int, Field(gt=0)] = 2
    #: longest wait for a step's samples, in seconds; after it the run ends with an error that names the file
    timeout_seconds: Annotated[float, Field(gt=0)] = 300


class ObjectiveSection(Section):
    """The training objective of a sample.

    The model restores the sample from a copy that is unchanged (ae), masked (mlm), permuted (plm) or both (mlm+plm).
    With clm it continues the first 70 to 80% of the sample; with infill it writes segments that were left out.
    """

    #: one objective, or several with weights; then one is drawn for each sample: ``{mlm+plm: 3, clm: 1}``
    corruption: str | dict[str, float] = "mlm+plm"
    #: probability that an ordinary token is chosen; 80% of the chosen become [MASK], 10% a random token, 10% stay. With
    #: infill: the share of tokens that segments hold
    mask_probability: Probability = 0.15
    #: probability that an ordinary token is chosen; the chosen tokens change places among themselves
    permute_probability: Probability = 0.5
    #: mask whole words: all tokens of a word, or none
    whole_word: bool = False
    #: weight of the auxiliary loss that predicts masked tokens from the encoder; 0: no such loss
    encoder_mlm_weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0

    @property
    def mixture(self) -> dict[str, float]:
        """Objective -> weight."""
        return {self.corruption: 1.0} if isinstance(self.corruption, str) else self.corruption

    @field_validator("corruption", mode="plain")
    @classmethod
    def _known_objectives(cls, value: Any) -> str | dict[str, float]:
        weights = {value: 1.0} if isinstance(value, str) else value
        if not isinstance(weights, dict):
            raise ValueError(f"give {', '.join(OBJECTIVES)}, or several with weights: {{mlm+plm: 3, clm: 1}}")
        for name, weight in weights.items():
            if name not in OBJECTIVES:
                raise ValueError(f"unknown objective {name!r}: {nearest(str(name), OBJECTIVES)}")
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < math.inf:
                raise ValueError(f"the weight of {name} is {weight!r}: give a number of at least 0")
        if not any(weights.values()):
            raise ValueError("no objective has a weight above 0: give at least one, for example {mlm+plm: 1}")
        return value if isinstance(value, str) else {name: float(weight) for name, weight in value.items()}

    @model_validator(mode="after")
    def _something_to_predict(self) -> ObjectiveSection:
        masked = any("mlm" in name and weight > 0 for name, weight in self.mixture.items())
        if self.encoder_mlm_weight and not (masked and self.mask_probability):
            raise ValueError(
                "encoder_mlm_weight needs masked tokens: give mlm or mlm+plm a weight, or set encoder_mlm_weight to 0"
            )
        return self


class GlancingSection(Section):
    """Glancing: in training, some positions see the target token that they should write (`bnb_ds.targets.glancing`).

    The share of positions is a ratio times the share of wrong ones. The ratio goes from ``start`` to ``end`` in a
    straight line and stays there.
    """

    #: the ratio of the first step
    start: Probability = 0.5
    #: the ratio after ``steps``
    end: Probability = 0.3
    #: steps from ``start`` to ``end``; default: all steps of the run
    steps: Annotated[int, Field(gt=0)] | None = None
    #: with one token a position: the share of samples of which not their errors but mask-predict's noise says how many
    #: tokens are seen, none to all but one; for models that decode with ``refinement``
    mask_predict: Probability = 0.0

    def ratio(self, step: int, total_steps: int) -> float:
        """The ratio of a step, which is counted from 0, of a run of ``total_steps``."""
        return self.start + (self.end - self.start) * min(step / (self.steps or total_steps), 1.0)


class ScheduleSection(Section):
    """Learning-rate multiplier over the steps. The peak rate is the optimizer's ``lr`` in the DeepSpeed JSON."""

    #: fraction of all steps spent on linear warm-up
    warmup_ratio: Probability = 0.05
    #: how the rate goes from the peak to ``final_ratio``; constant: it stays at the peak
    decay: Literal["linear", "cosine", "constant"] = "linear"
    #: multiplier at the last step
    final_ratio: Probability = 0.0


class IntervalSection(Section):
    """How often a run logs, evaluates and saves, in steps."""

    #: steps between lines of the log
    log_steps: Annotated[int, Field(gt=0)] = 10
    #: steps between evaluations
    eval_steps: Annotated[int, Field(gt=0)] = 1000
    #: steps between checkpoints
    checkpoint_steps: Annotated[int, Field(gt=0)] = 1000
    #: newest checkpoints kept on disk; the best by ``eval/loss`` is kept as well
    keep_checkpoints: Annotated[int, Field(gt=0)] = 3
    #: held-out samples read at each evaluation
    eval_samples: Annotated[int, Field(gt=0)] = 1024
    #: held-out samples shown as text at each evaluation
    reconstructions: Annotated[int, Field(ge=0)] = 4
    #: write histograms of all weights at evaluations whose step is a multiple of this; 0: never
    histogram_steps: Annotated[int, Field(ge=0)] = 0
    #: hash and publish checkpoints in the background, while training continues
    background_checkpoints: bool = True


class SpikeSection(Section):
    """Skip steps whose loss jumps. Without ``factor``, no step is skipped."""

    #: a loss above this many times the recent median is a spike
    factor: Annotated[float, Field(gt=1)] | None = None
    #: the median is taken over this many accepted steps
    window_steps: Annotated[int, Field(gt=1)] = 100
    #: after this many spikes in a row the run goes back to the newest checkpoint before them, and past their samples
    max_in_row: Annotated[int, Field(gt=0)] = 10
    #: the run ends with an error instead of going back once more
    max_returns: Annotated[int, Field(ge=0)] = 3


class FaultSection(Section):
    """How long a job waits for a rank before the job ends, in seconds."""

    #: wait for a rank that was killed or stopped, or that cannot be reached
    silence_seconds: Annotated[float, Field(ge=2)] = 60
    #: wait while no rank makes progress: passes a batch or a phase, or reads or writes files
    hang_seconds: Annotated[float, Field(ge=10)] = 1800


class TrackingSection(Section):
    """Where the numbers of a run go, besides the console and ``metrics.jsonl``. All of this may change at a resume."""

    #: tensorboard, wandb, mlflow, trackio, a logger of another package, or a class of your own: MODULE:CLASS or
    #: FILE.py:CLASS (`bnb_ds.loggers.logger` says what it is told)
    loggers: Annotated[list[str], Field(default_factory=lambda: ["tensorboard"])]
    #: the project (W&B, trackio) or experiment (MLflow) that the run belongs to
    project: Annotated[str, Field(min_length=1)] = "bnb_ds"
    #: name of the run there; default: the last part of ``output_dir``
    name: str | None = None


class StragglerSection(Section):
    """Name ranks that are slower than the others, and what they are slow at."""

    #: steps between two comparisons, which tell of the steps since the last one; 0: never
    check_steps: Annotated[int, Field(ge=0)] = 100
    #: a rank is named if it takes more than this many times as long as the median of the others
    factor: Annotated[float, Field(gt=1)] = 1.5


class TrainingRecipe(Section):
    """Fields that pre-training and fine-tuning recipes share."""

    #: directory of the run: checkpoints, logs and settings
    output_dir: str
    #: of random weights, the order of the samples, their noise and dropout
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 42
    #: optimizer steps of the run; give this or ``epochs``
    steps: Annotated[int, Field(gt=0)] | None = None
    #: passes over the training samples; give this or ``steps``
    epochs: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    loader: LoaderSection = LoaderSection()
    schedule: ScheduleSection = ScheduleSection()
    #: needs a BERT-NAR-BERT with ``decoder_tokens``; default: no glancing
    glancing: GlancingSection | None = None
    #: probability that the right token replaces what the decoder's layers predict for a position (but not what the last
    #: one predicts); needs ``model.deep_supervision``; default: it never does
    mixed_training: Probability | None = None
    spikes: SpikeSection = SpikeSection()
    faults: FaultSection = FaultSection()
    stragglers: StragglerSection = StragglerSection()
    tracking: TrackingSection = TrackingSection()

    @model_validator(mode="after")
    def _steps_or_epochs(self) -> TrainingRecipe:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of steps and epochs")
        return self

    def total_steps(self, samples_per_epoch: int, global_batch: int) -> int:
        """Optimizer steps of the whole run."""
        if self.steps is not None:
            return self.steps
        return max(math.ceil(self.epochs * samples_per_epoch / global_batch), 1)

    def values(self) -> dict[str, Any]:
        """The recipe as nested dictionaries with defaults written out; an equal recipe can be made from them.

        If ``model.checkpoint`` is given, model fields that the recipe does not set are left to that checkpoint.
        """
        values = self.model_dump()
        if getattr(self.model, "checkpoint", None) is not None:
            values["model"] = self.model.model_dump(exclude_unset=True)
        return values


class PretrainRecipe(TrainingRecipe):
    """The recipe of a pre-training run."""

    model: ModelSection = ModelSection()
    data: DataSection
    objective: ObjectiveSection = ObjectiveSection()
    intervals: IntervalSection = IntervalSection()

    @model_validator(mode="after")
    def _samples_fit_micro_batches(self) -> PretrainRecipe:
        budget, longest = self.loader.micro_batch_tokens, self.data.max_length
        if budget is not None and budget < longest:
            raise ValueError(
                f"loader.micro_batch_tokens {budget}: a sample can have {longest} tokens (data.max_length); give at"
                f" least {longest}"
            )
        return self
