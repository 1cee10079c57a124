"""Recipes: YAML file plus dotted overrides -> one typed, validated, immutable object.

A recipe owns everything that DeepSpeed does not read: model, data, objective, steps, schedule, seed, intervals and the
output directory. Batch sizes, precision, ZeRO, clipping, optimizer and peak learning rate live in the DeepSpeed JSON
(:mod:`bnb_ds.ds_config`) and nowhere else. Every field below says its unit and its default.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bnb_ds.errors import ConfigError, nearest

# Two ways to give the length of a run.
_ALTERNATIVES = {"steps": "epochs", "epochs": "steps"}

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
    """

    encoder: str | None = None
    decoder: str | None = None
    size: ModelSize | None = None
    latent_size: Annotated[int, Field(gt=0)] = 8
    latent_dropout: Probability = 0.0
    hidden_dropout: Probability = 0.1
    attention_dropout: Probability = 0.1
    #: decoder positions = ceil(ratio x real source tokens + offset), within min and max
    decoder_length_ratio: Annotated[float, Field(gt=0)] = 2.0
    decoder_length_offset: int = 0
    decoder_length_min: Annotated[int, Field(ge=1)] = 1
    decoder_length_max: Annotated[int, Field(ge=1)] | None = None
    decoder_positions: Literal["absolute", "shared"] = "shared"

    @model_validator(mode="after")
    def _one_start(self) -> ModelSection:
        if self.encoder is not None and self.size is not None:
            raise ValueError("encoder and size exclude each other: a checkpoint brings its own size; remove one")
        if self.decoder is not None and self.encoder is None:
            raise ValueError("decoder needs encoder: name both checkpoints or neither")
        return self


class DataSection(Section):
    """Where samples come from and how long they are."""

    shards: str
    #: truncate: the first ``max_length - 2`` tokens of a document (the paper); chunk: every token is used
    sequence: Literal["truncate", "chunk"] = "truncate"
    #: tokens of a sequence, [CLS] and [SEP] included
    max_length: Annotated[int, Field(ge=3)] = 512


class ObjectiveSection(Section):
    """What is reconstructed: ae (plain), mlm (masked), plm (permuted), mlm+plm (both, fused)."""

    corruption: Literal["ae", "mlm", "plm", "mlm+plm"] = "mlm+plm"
    #: of all ordinary tokens; of the chosen ones 80% become [MASK], 10% a random token, 10% stay
    mask_probability: Probability = 0.15
    #: of all ordinary tokens; the chosen ones change places among themselves
    permute_probability: Probability = 0.5


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


class PretrainRecipe(Section):
    """A whole pre-training run."""

    output_dir: str
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 42
    #: optimizer steps; give this or ``epochs``
    steps: Annotated[int, Field(gt=0)] | None = None
    #: passes over the training documents; give this or ``steps``
    epochs: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    model: ModelSection = ModelSection()
    data: DataSection
    objective: ObjectiveSection = ObjectiveSection()
    schedule: ScheduleSection = ScheduleSection()
    intervals: IntervalSection = IntervalSection()
    spikes: SpikeSection = SpikeSection()
    faults: FaultSection = FaultSection()

    @model_validator(mode="after")
    def _steps_or_epochs(self) -> PretrainRecipe:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of steps and epochs")
        return self


def load_recipe(path: str | Path, overrides: Iterable[str] = ()) -> PretrainRecipe:
    """Read a recipe, apply ``key.path=value`` overrides (values are YAML), and validate it.

    An override of ``steps`` takes the place of the recipe's ``epochs``, and the other way round.

    Raises:
        ConfigError: naming the file or the override, the dotted field, and the way out; all faults at once.
    """
    path = Path(path)
    values = _read_yaml(path)
    for override in overrides:
        _apply_override(values, override)
    try:
        return PretrainRecipe.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{path}: " + "; ".join(_describe(e) for e in error.errors())) from None


def dump_recipe(recipe: PretrainRecipe) -> str:
    """The recipe as YAML, defaults written out."""
    return yaml.safe_dump(recipe.model_dump(), sort_keys=False)


def differences(ours: Any, theirs: Any, prefix: str = "") -> Iterator[str]:
    """``"path: theirs -> ours"`` for every leaf in which two nested dictionaries differ."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in sorted({*ours, *theirs}):
            yield from differences(ours.get(key), theirs.get(key), f"{prefix}.{key}" if prefix else str(key))
    elif ours != theirs:
        yield f"{prefix}: {theirs!r} -> {ours!r}"


class _RecipeLoader(yaml.SafeLoader):
    """Safe YAML in which a key given twice is an error, not a silent replacement."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} is given twice; keep one", node.start_mark
                )
        return super().construct_mapping(node, deep)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _RecipeLoader)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such recipe; shipped ones are under runs/recipes/") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as a recipe: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a recipe is a mapping of keys to values; this file is not one")
    return values


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r}: write it as key.path=value, for example data.max_length=128")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"override {override!r}: the value is not valid YAML; quote it") from None
    *parents, leaf = key.split(".")
    node = values
    for i, parent in enumerate(parents):
        child = node.get(parent)
        if child is None:
            child = node[parent] = {}
        if not isinstance(child, dict):
            raise ConfigError(f"override {override!r}: {'.'.join(parents[: i + 1])} is a value, not a section")
        node = child
    node[leaf] = value
    if key in _ALTERNATIVES and value is not None:
        values.pop(_ALTERNATIVES[key], None)


def _describe(error: dict[str, Any]) -> str:
    dotted = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        section = _section_at(error["loc"][:-1])
        return f"unknown key {dotted!r}: {nearest(str(error['loc'][-1]), section.model_fields)}"
    if error["type"] == "missing":
        return f"{dotted}: this field is required"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        return f"{dotted}: {message}" if dotted else message
    return f"{dotted}: {message} (got {error['input']!r})"


def _section_at(location: tuple[Any, ...]) -> type[Section]:
    """The section class at a path of field names."""
    section: type[Section] = PretrainRecipe
    for name in location:
        annotation = section.model_fields[name].annotation
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        section = next(c for c in candidates if isinstance(c, type) and issubclass(c, Section))
    return section
