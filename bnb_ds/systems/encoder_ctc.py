"""CTC over an encoder alone, which reads the source with [MASK]s inserted: the kind ``encoder_ctc``.

It is a BERT-NAR-BERT without its decoder: half the work, and all of its weights come from the checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from torch import Tensor

from bnb_ds.config.model_section import ModelSection, ModelSize
from bnb_ds.config.section import Probability, Section
from bnb_ds.data.batch import PackedBatch
from bnb_ds.errors import ConfigError
from bnb_ds.model.configuration import BnbConfig
from bnb_ds.model.students.imitation import Anchor
from bnb_ds.model.students.training_pass import TrainingPass
from bnb_ds.systems.bnb import BnbGenerator
from bnb_ds.tasks.codec import Codec
from bnb_ds.tasks.data_section import TaskDataSection
from bnb_ds.tasks.task import Task
from bnb_ds.train.objectives import Term

#: fields with the same name in `ModelSection`
_SAME_NAME = (
    "checkpoint",
    "encoder",
    "size",
    "encoder_layers",
    "max_position_embeddings",
    "extend_positions",
    "hidden_dropout",
    "attention_dropout",
    "kl_weight",
    "loss_reduction",
)


class EncoderCtcSection(Section):
    """The ``model`` section of an encoder with CTC (Syu, Xie and Lee, arXiv 2306.06345: CTCPMLM).

    Without ``checkpoint`` and ``encoder``, the model starts from random weights of ``size``.
    """

    kind: Literal["encoder_ctc"]
    #: a whole model of this kind to continue from: a directory, or a name on the Hugging Face hub
    checkpoint: str | None = None
    #: a BERT checkpoint, or of another backbone, to start from with its head; default: random weights
    encoder: str | None = None
    #: shape of a model with random weights
    size: ModelSize | None = None
    #: layers: evenly spaced ones of a checkpoint, or in the place of ``size.num_hidden_layers``
    encoder_layers: Annotated[int, Field(gt=0)] | None = None
    #: position embeddings to use of a BERT checkpoint: fewer than it has, or more with ``extend_positions``
    max_position_embeddings: Annotated[int, Field(gt=0)] | None = None
    #: repeat a checkpoint's position embeddings if it has too few
    extend_positions: bool = False
    #: [MASK]s behind each source token; a source of n tokens takes (masks + 1) n positions; default: 1, or the
    #: checkpoint's
    masks: Annotated[int, Field(ge=1)] = 1
    #: weight of the squared distance between the output embedding of a target token and that of ``encoder`` or
    #: ``checkpoint``, a mean over target tokens; 0: the embeddings go where the targets lead
    embedding_anchor: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    #: dropout of hidden states
    hidden_dropout: Probability = 0.1
    #: dropout of attention weights
    attention_dropout: Probability = 0.1
    #: weight of the smoothing term KL(uniform || p) of each position
    kl_weight: Annotated[float, Field(ge=0)] = 0.0
    #: token: samples are weighted by their number of target tokens; sample: all weigh the same
    loss_reduction: Literal["token", "sample"] = "token"

    @model_validator(mode="after")
    def _as_a_bnb(self) -> EncoderCtcSection:
        self.as_bnb()  # its own rules for checkpoints and sizes hold here too
        if self.embedding_anchor and self.encoder is None and self.checkpoint is None:
            raise ValueError(
                f"embedding_anchor {self.embedding_anchor} keeps the embeddings of a checkpoint, but size draws random"
                " ones; remove it, or name encoder or checkpoint"
            )
        return self

    def as_bnb(self) -> ModelSection:
        """The section of a BERT-NAR-BERT that makes this model."""
        own = {name: getattr(self, name) for name in _SAME_NAME if name in self.model_fields_set}
        if self.checkpoint is None or "masks" in self.model_fields_set:
            own["decoder_length_ratio"] = self.masks + 1
        return ModelSection(
            has_decoder=False,
            target="ctc",
            decoder_length="source",
            decoder_positions="absolute",
            decoder_tokens=True,
            slot_tokens="inserted",
            decoder_latent=False,
            **own,
        )


@dataclass(frozen=True, eq=False)
class Anchoring:
    """A `bnb_ds.train.objectives.Term`: output embeddings stay near those that the run began with.

    Attributes:
        originals: [V, H], on the host.
        weight: of the loss.
    """

    originals: Tensor
    weight: float

    def of(self, batch: PackedBatch) -> Callable[[TrainingPass], Tensor]:
        return Anchor(self.originals.index_select(0, batch.labels), self.weight)


class EncoderCtc(BnbGenerator):
    """An encoder with CTC over the source and the [MASK]s inserted into it."""

    kind = "encoder_ctc"
    section: EncoderCtcSection

    @classmethod
    def make_codec(cls, task: Task, section: EncoderCtcSection, data: TaskDataSection) -> Codec:
        return super().make_codec(task, section.as_bnb(), data)

    @property
    def model_section(self) -> ModelSection:
        return self.section.as_bnb()

    def config(self) -> BnbConfig:
        if self._config is None and self._source.tokenizer_hash != self._target.tokenizer_hash:
            raise ConfigError(
                f"data.target_tokenizer: kind {self.kind} reads and writes with one vocabulary; remove"
                " data.target_tokenizer"
            )
        return super().config()

    def terms(self, model: Any) -> list[Term]:
        weight = self.section.embedding_anchor
        return [Anchoring(model.get_output_embeddings().weight.detach().cpu().clone(), weight)] if weight else []
