"""The kinds of models by name (``model.kind`` of a recipe)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from bnb_ds.baselines.nar_settings import CmlmSection, ElmerSection, InatSection, NatSection
from bnb_ds.baselines.settings import Bert2bertSection, ClassifierSection, Seq2SeqSection, TransformerSection
from bnb_ds.errors import ConfigError
from bnb_ds.systems.base import System
from bnb_ds.systems.baselines import Bert2bert, CheckpointClassifier, Seq2SeqCheckpoint, Transformer
from bnb_ds.systems.bnb import BnbClassifier, BnbGenerator, BnbModelSection
from bnb_ds.systems.encoder_ctc import EncoderCtc, EncoderCtcSection
from bnb_ds.systems.nar import Cmlm, Elmer, Inat, Nat
from bnb_ds.tasks.task import Task

#: the ``model`` section of a recipe; its field ``kind`` selects the class
ModelChoice = Annotated[
    BnbModelSection
    | NatSection
    | InatSection
    | CmlmSection
    | ElmerSection
    | EncoderCtcSection
    | Bert2bertSection
    | TransformerSection
    | Seq2SeqSection
    | ClassifierSection,
    Field(discriminator="kind"),
]


#: kinds that write texts
GENERATORS: dict[str, type[System]] = {
    system.kind: system
    for system in (BnbGenerator, Nat, Inat, Cmlm, Elmer, EncoderCtc, Bert2bert, Transformer, Seq2SeqCheckpoint)
}


#: kinds that give labels
CLASSIFIERS: dict[str, type[System]] = {system.kind: system for system in (BnbClassifier, CheckpointClassifier)}


def system_class(kind: str, task: Task) -> type[System]:
    """Return the class for a kind of model and a task.

    Raises:
        ConfigError: this kind cannot do the task.
    """
    able = GENERATORS if task.is_generation else CLASSIFIERS
    if kind not in able:
        wanted = "texts" if task.is_generation else "labels"
        raise ConfigError(f"model.kind {kind}: task {task.name} needs {wanted}; give one of: {', '.join(able)}")
    return able[kind]
