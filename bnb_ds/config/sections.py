"""The sections of a recipe as typed, validated, immutable classes; :mod:`bnb_ds.config.loading` reads the YAML.

A recipe holds every setting that DeepSpeed does not read: model, data, objective, steps, schedule, seed, intervals and
output directory. Batch sizes, precision, ZeRO, clipping, optimizer and peak learning rate are set only in the DeepSpeed
JSON (:mod:`bnb_ds.config.deepspeed`). Every field below states its unit and its default.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from bnb_ds.data.corruption import OBJECTIVES
from bnb_ds.data.sequences import Building
from bnb_ds.errors import nearest

Probability = Annotated[float, Field(ge=0.0, le=1.0)]


class Section(BaseModel):
    """A block of a recipe. Unknown keys are errors, and values cannot change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class LayerSize(Section):
    """Shape of the layers of a model with random weights (default: BERT base)."""

    hidden_size: Annotated[int, Field(gt=0)] = 768
    num_attention_heads: Annotated[int, Field(gt=0)] = 12
    intermediate_size: Annotated[int, Field(gt=0)] = 3072
    max_position_embeddings: Annotated[int, Field(gt=0)] = 512
    #: standard deviation of the random weights; BERT's 0.02 is small for layers much narrower than BERT's
    initializer_range: Annotated[float, Field(gt=0)] = 0.02

    @model_validator(mode="after")
    def _heads_divide(self) -> LayerSize:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )
        return self


class ModelSize(LayerSize):
    """Shape of the encoder and of the decoder if both start from random weights (default: BERT base)."""

    num_hidden_layers: Annotated[int, Field(gt=0)] = 12
    #: standard deviation of all weights; a small model, and a graph above all, needs more than BERT's
    initializer_range: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.02


class DecodingSection(Section):
    """How a model decodes if nothing else is said (`bnb_ds.decoding.options.DecodeOptions`)."""

    #: lengths to try; passes of the decoder behind the first one; entropy in nats below which a position exits a layer
    length_beam: Annotated[int, Field(ge=1)] | None = None
    refinement: Annotated[int, Field(ge=0)] | None = None
    exit_entropy: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None


class ModelSection(Section):
    """The model to train.

    ``encoder`` and ``decoder`` name BERT checkpoints (a Hugging Face directory or hub name). Without ``encoder``, the
    model starts from random weights of the given ``size``. Without ``decoder``, the decoder starts from the encoder's
    checkpoint. ``checkpoint`` names a whole BERT-NAR-BERT to continue from (an exported or imported directory, or a hub
    name). Its settings then replace the defaults below; fields that the recipe sets still win.
    """

    checkpoint: str | None = None
    encoder: str | None = None
    decoder: str | None = None
    size: ModelSize | None = None
    #: position embeddings to use of both BERT checkpoints: fewer than they have, or more with ``extend_positions``
    max_position_embeddings: Annotated[int, Field(gt=0)] | None = None
    #: repeat a checkpoint's position embeddings if it has too few
    extend_positions: bool = False
    #: the decoder shares embeddings, self-attention and feed-forward layers with the encoder
    tie_encoder_decoder: bool = False
    latent_size: Annotated[int, Field(gt=0)] = 8
    latent_dropout: Probability = 0.0
    hidden_dropout: Probability = 0.1
    attention_dropout: Probability = 0.1
    #: source: the number of positions follows the source length; predicted: it follows the target length, which is
    #: predicted by classification
    decoder_length: Literal["source", "predicted"] = "source"
    #: decoder positions = ceil(ratio x real source tokens + offset), clipped to min and max
    decoder_length_ratio: Annotated[float, Field(gt=0)] = 2.0
    decoder_length_offset: int = 0
    decoder_length_min: Annotated[int, Field(ge=1)] = 1
    decoder_length_max: Annotated[int, Field(ge=1)] | None = None
    decoder_positions: Literal["absolute", "shared"] = "shared"
    #: what reads the positions: ctc; token (one token each, for predicted); dag (paths through a graph of positions);
    #: default: token for predicted, else ctc
    target: Literal["ctc", "token", "dag"] | None = None
    #: with dag: attention heads of the links between positions; default: as the decoder
    link_heads: Annotated[int, Field(gt=0)] | None = None
    #: with dag: most positions of a graph
    link_positions: Annotated[int, Field(ge=2)] = 1024
    #: the input of a position holds a token too, [MASK] where nothing is known; ``glancing`` needs it
    decoder_tokens: bool = False
    #: with decoder_tokens, what a position holds where nothing is known: [MASK], or the source token it stands for
    slot_tokens: Literal["mask", "source"] = "mask"
    #: the input of a position holds a latent; false needs predicted lengths, which then are all that latents serve
    decoder_latent: bool = True
    #: what further passes of decoding predict anew: unsure: the least probable tokens; all: all of them
    refined_tokens: Literal["unsure", "all"] = "unsure"
    #: how the trained model decodes if nothing else is said
    decoding: DecodingSection = DecodingSection()
    #: every decoder layer predicts, the next one reads its prediction, and the loss is the mean of their losses
    deep_supervision: bool = False
    #: with deep_supervision: every n-th layer only, counted from the last one
    deep_supervision_every: Annotated[int, Field(ge=1)] = 1
    #: with dag and infill: every segment has a block of the graph of its own, which no link passes
    segment_blocks: bool = False
    #: standard deviation of the decoder's new embeddings (words, positions, links' places); default: as all
    #: weights. A graph with random weights learns only if its slots begin with different words
    embedding_range: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    #: with predicted lengths: smallest and largest difference (target minus source tokens) that has its own class
    length_difference_min: int = -128
    length_difference_max: int = 128
    #: with predicted lengths: weight of the length loss, added to the mean token loss
    length_loss_weight: Annotated[float, Field(ge=0)] = 0.1
    #: weight of the smoothing term KL(uniform || p) of each position; ``beta`` in the paper's code
    kl_weight: Annotated[float, Field(ge=0)] = 0.0
    #: token: samples are weighted by their number of target tokens; sample: all weigh the same, as in the paper's code
    loss_reduction: Literal["token", "sample"] = "token"

    @model_validator(mode="after")
    def _one_start(self) -> ModelSection:
        others = [name for name in ("encoder", "decoder", "size") if getattr(self, name) is not None]
        if self.checkpoint is not None and others:
            raise ValueError(f"give checkpoint or {others[0]}, not both: a checkpoint is a whole model")
        if self.max_position_embeddings is not None and self.encoder is None:
            raise ValueError(
                "max_position_embeddings applies to BERT checkpoints; without one set size.max_position_embeddings"
            )
        if self.encoder is not None and self.size is not None:
            raise ValueError("give encoder or size, not both: a checkpoint has its own size")
        if self.decoder is not None and self.encoder is None:
            raise ValueError("decoder needs encoder: name both checkpoints or neither")
        return self


class DataSection(Section):
    """The source of the samples, and their length."""

    shards: str
    #: truncate: keep the first ``max_length - 2`` tokens of a document, as in the paper; chunk: cut documents into
    #: pieces, so that every token is used; pack: put as many chunks into one sample as fit, with separate attention
    sequence: Building = "truncate"
    #: tokens of a sequence, including [CLS] and [SEP]; with pack, of all sequences of a sample together
    max_length: Annotated[int, Field(ge=3, le=2**16)] = 512


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
        return value

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

    start: Probability = 0.5
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
    decay: Literal["linear", "cosine", "constant"] = "linear"
    #: multiplier at the last step
    final_ratio: Probability = 0.0


class IntervalSection(Section):
    """How often a run logs, evaluates and saves, in steps."""

    log_steps: Annotated[int, Field(gt=0)] = 10
    eval_steps: Annotated[int, Field(gt=0)] = 1000
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


class TrainingRecipe(Section):
    """Fields that pre-training and fine-tuning recipes share."""

    output_dir: str
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
