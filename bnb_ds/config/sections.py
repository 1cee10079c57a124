"""What a recipe may say: typed, validated and immutable once read (:mod:`bnb_ds.config.loading` reads the YAML).

A recipe owns everything that DeepSpeed does not read: model, data, objective, steps, schedule, seed, intervals and the
output directory. Batch sizes, precision, ZeRO, clipping, optimizer and peak learning rate live in the DeepSpeed JSON
(:mod:`bnb_ds.config.deepspeed`) and nowhere else. Every field below says its unit and its default.
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
    """A block of a recipe: unknown keys are errors and values do not change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class ModelSize(Section):
    """Shape of the encoder and of the decoder where both start from random weights (default: BERT base)."""

    hidden_size: Annotated[int, Field(gt=0)] = 768
    num_hidden_layers: Annotated[int, Field(gt=0)] = 12
    num_attention_heads: Annotated[int, Field(gt=0)] = 12
    intermediate_size: Annotated[int, Field(gt=0)] = 3072
    max_position_embeddings: Annotated[int, Field(gt=0)] = 512

    @model_validator(mode="after")
    def _heads_divide(self) -> ModelSize:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )
        return self


class ModelSection(Section):
    """What is trained.

    ``encoder`` and ``decoder`` name BERT checkpoints (a Hugging Face directory or hub name); without ``encoder`` the
    model starts from random weights of ``size``; without ``decoder`` it starts from the same checkpoint as the encoder.
    ``checkpoint`` names a whole BERT-NAR-BERT (an exported or imported directory or hub name) to train on; its own
    settings then take the place of the defaults below, but not of what the recipe says.
    """

    checkpoint: str | None = None
    encoder: str | None = None
    decoder: str | None = None
    size: ModelSize | None = None
    #: positions of both halves of BERT checkpoints; fewer than they have, or more with ``extend_positions``
    max_position_embeddings: Annotated[int, Field(gt=0)] | None = None
    #: repeat a checkpoint's position embeddings where it has too few
    extend_positions: bool = False
    #: the decoder's embeddings, self-attention and feed-forward layers are the encoder's own
    tie_encoder_decoder: bool = False
    latent_size: Annotated[int, Field(gt=0)] = 8
    latent_dropout: Probability = 0.0
    hidden_dropout: Probability = 0.1
    attention_dropout: Probability = 0.1
    #: source: CTC over positions that follow from the source; predicted: length classification
    decoder_length: Literal["source", "predicted"] = "source"
    #: decoder positions = ceil(ratio x real source tokens + offset), within min and max
    decoder_length_ratio: Annotated[float, Field(gt=0)] = 2.0
    decoder_length_offset: int = 0
    decoder_length_min: Annotated[int, Field(ge=1)] = 1
    decoder_length_max: Annotated[int, Field(ge=1)] | None = None
    decoder_positions: Literal["absolute", "shared"] = "shared"
    #: with predicted lengths: smallest and largest difference, target minus source tokens, with a class of its own
    length_difference_min: int = -128
    length_difference_max: int = 128
    #: with predicted lengths: weight of the length loss beside the mean token loss
    length_loss_weight: Annotated[float, Field(ge=0)] = 0.1
    #: weight of KL(uniform || p) of each position, a smoothing term; ``beta`` of the paper's code
    kl_weight: Annotated[float, Field(ge=0)] = 0.0
    #: token: samples count in the loss by their target tokens; sample: all the same, as in the paper's code
    loss_reduction: Literal["token", "sample"] = "token"

    @model_validator(mode="after")
    def _one_start(self) -> ModelSection:
        others = [name for name in ("encoder", "decoder", "size") if getattr(self, name) is not None]
        if self.checkpoint is not None and others:
            raise ValueError(f"checkpoint and {others[0]} exclude each other: a whole model brings both; remove one")
        if self.max_position_embeddings is not None and self.encoder is None:
            raise ValueError(
                "max_position_embeddings needs encoder; for random weights set size.max_position_embeddings"
            )
        if self.encoder is not None and self.size is not None:
            raise ValueError("encoder and size exclude each other: a checkpoint brings its own size; remove one")
        if self.decoder is not None and self.encoder is None:
            raise ValueError("decoder needs encoder: name both checkpoints or neither")
        return self


class DataSection(Section):
    """Where samples come from and how long they are."""

    shards: str
    #: truncate: the first ``max_length - 2`` tokens of a document (the paper); chunk: every token is used; pack: chunks
    #: again, as many in one sample as fit, attention kept apart
    sequence: Building = "truncate"
    #: tokens of a sequence, [CLS] and [SEP] included; with pack, of all sequences of a sample
    max_length: Annotated[int, Field(ge=3, le=2**16)] = 512


class LoaderSection(Section):
    """How a step's samples reach the model; what is trained on, and in which order, does not depend on it."""

    #: real source tokens of a micro batch, at most; without it, as many samples as the JSON says. The micro steps of a
    #: step are then as many as that takes, and the samples of a step still the JSON's train_batch_size
    micro_batch_tokens: Annotated[int, Field(gt=0)] | None = None
    #: threads that prepare batches, on each rank
    workers: Annotated[int, Field(gt=0)] = 1
    #: steps prepared ahead, at most
    prefetch_steps: Annotated[int, Field(gt=0)] = 2
    #: longest wait for a step's samples, in seconds; then an error that names the file
    timeout_seconds: Annotated[float, Field(gt=0)] = 300


class ObjectiveSection(Section):
    """What a sample is trained on.

    Restored from itself (ae), masked (mlm), permuted (plm) or both (mlm+plm, fused), or the continuation of its first
    70 to 80% (clm).
    """

    #: one of them, or several with weights, drawn for each sample: ``{mlm+plm: 3, clm: 1}``
    corruption: str | dict[str, float] = "mlm+plm"
    #: of all ordinary tokens; of the chosen ones 80% become [MASK], 10% a random token, 10% stay
    mask_probability: Probability = 0.15
    #: of all ordinary tokens; the chosen ones change places among themselves
    permute_probability: Probability = 0.5
    #: mask all tokens of a word together
    whole_word: bool = False
    #: weight of the auxiliary loss that predicts masked tokens from the encoder; 0 for none
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
            raise ValueError("no objective has a weight above 0: give one, for example {mlm+plm: 1}")
        return value

    @model_validator(mode="after")
    def _something_to_predict(self) -> ObjectiveSection:
        masked = any("mlm" in name and weight > 0 for name, weight in self.mixture.items())
        if self.encoder_mlm_weight and not (masked and self.mask_probability):
            raise ValueError("encoder_mlm_weight needs masked tokens: give mlm or mlm+plm a weight, or set it to 0")
        return self


class ScheduleSection(Section):
    """Learning-rate multiplier over steps; the peak is the optimizer's ``lr`` in the DeepSpeed JSON."""

    #: share of all steps spent in linear warm-up
    warmup_ratio: Probability = 0.05
    decay: Literal["linear", "cosine", "constant"] = "linear"
    #: multiplier at the last step
    final_ratio: Probability = 0.0


class IntervalSection(Section):
    """How often, in steps."""

    log_steps: Annotated[int, Field(gt=0)] = 10
    eval_steps: Annotated[int, Field(gt=0)] = 1000
    checkpoint_steps: Annotated[int, Field(gt=0)] = 1000
    #: newest checkpoints kept on disk; the best by ``eval/loss`` is kept besides
    keep_checkpoints: Annotated[int, Field(gt=0)] = 3
    #: held-out samples read at each evaluation
    eval_samples: Annotated[int, Field(gt=0)] = 1024
    #: of them, shown as text at each evaluation
    reconstructions: Annotated[int, Field(ge=0)] = 4
    #: histograms of all weights at evaluations whose step this divides; 0 for never
    histogram_steps: Annotated[int, Field(ge=0)] = 0
    #: hash and publish checkpoints while training goes on
    background_checkpoints: bool = True


class SpikeSection(Section):
    """Steps whose loss jumps and which are therefore not taken; none unless ``factor`` is given."""

    #: a loss above this many times the median of the recent ones is a spike
    factor: Annotated[float, Field(gt=1)] | None = None
    #: accepted steps that the median is taken over
    window_steps: Annotated[int, Field(gt=1)] = 100


class FaultSection(Section):
    """How long a job waits for a rank before it ends, in seconds."""

    #: a rank that does not run (killed, stopped) or cannot be reached
    silence_seconds: Annotated[float, Field(ge=2)] = 60
    #: no rank makes progress; longer than any evaluation or checkpoint. Collective operations time out soon after
    hang_seconds: Annotated[float, Field(ge=10)] = 1800


class TrainingRecipe(Section):
    """What recipes of all kinds of training share."""

    output_dir: str
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 42
    #: optimizer steps; give this or ``epochs``
    steps: Annotated[int, Field(gt=0)] | None = None
    #: passes over the training samples; give this or ``steps``
    epochs: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    loader: LoaderSection = LoaderSection()
    schedule: ScheduleSection = ScheduleSection()
    spikes: SpikeSection = SpikeSection()
    faults: FaultSection = FaultSection()

    @model_validator(mode="after")
    def _steps_or_epochs(self) -> TrainingRecipe:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of steps and epochs")
        return self

    def total_steps(self, samples_per_epoch: int, global_batch: int) -> int:
        """Steps of the whole run."""
        if self.steps is not None:
            return self.steps
        return max(math.ceil(self.epochs * samples_per_epoch / global_batch), 1)

    def values(self) -> dict[str, Any]:
        """The recipe as nested dictionaries, defaults written out, from which an equal recipe can be made.

        Where ``model.checkpoint`` is given, what the recipe does not say of the model stays open: it is that model's.
        """
        values = self.model_dump()
        if getattr(self.model, "checkpoint", None) is not None:
            values["model"] = self.model.model_dump(exclude_unset=True)
        return values


class PretrainRecipe(TrainingRecipe):
    """A whole pre-training run."""

    model: ModelSection = ModelSection()
    data: DataSection
    objective: ObjectiveSection = ObjectiveSection()
    intervals: IntervalSection = IntervalSection()

    @model_validator(mode="after")
    def _samples_fit_micro_batches(self) -> PretrainRecipe:
        budget, longest = self.loader.micro_batch_tokens, self.data.max_length
        if budget is not None and budget < longest:
            raise ValueError(
                f"loader.micro_batch_tokens {budget}: one sample can have data.max_length {longest} tokens; set it to"
                " that or more"
            )
        return self
