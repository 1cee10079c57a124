"""What a row of the paper's tables costs to train: steps, and hours of a GPU. Computed before any file is there.

The numbers of rows are those of the published training sets, and the sizes those of the checkpoints that a recipe
names. Every sample is taken to be as long as the recipe allows, so the hours are an upper bound. With the data at hand,
``--dry-run`` tells the steps of a launch, and its first steps the seconds of each.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np

from bnb_ds.baselines.cost import classifier_flops, seq2seq_flops
from bnb_ds.baselines.nar_settings import NarSection
from bnb_ds.baselines.settings import (
    Bert2bertSection,
    ClassifierSection,
    Seq2SeqSection,
    Seq2SeqSize,
    TransformerSection,
)
from bnb_ds.config.deepspeed import load_ds_config
from bnb_ds.config.loading import load_recipe
from bnb_ds.config.model_section import ModelSection
from bnb_ds.config.sections import PretrainRecipe
from bnb_ds.data.tokenization import TokenizerVocabulary
from bnb_ds.finetune.recipe import FinetuneRecipe
from bnb_ds.model.configuration import BnbConfig
from bnb_ds.model.flops import TRAINING_FACTOR, classification_flops, forward_flops
from bnb_ds.model.slots import decoder_lengths
from bnb_ds.model_factory import bnb_fields
from bnb_ds.reproduce.paper_rows import EXPORTS, Row
from bnb_ds.tasks.text_lengths import Lengths
from bnb_ds.train.hardware import data_sheet_flops

GPU = "NVIDIA A100"
#: share of the GPU's peak that training reaches; as in `bnb-ds plan`
EFFICIENCY = 0.4

#: rows of the published training sets: nyu-mll/glue, EdinburghNLP/xsum and wmt on the hub; SQuAD in the split of Du et
#: al.; the medical ones in the splits of BioBART's scripts
TRAINING_ROWS = {
    "cola": 8_551,
    "sst2": 67_349,
    "mrpc": 3_668,
    "stsb": 5_749,
    "qqp": 363_846,
    "mnli": 392_702,
    "qnli": 104_743,
    "rte": 2_490,
    "wnli": 635,
    "xsum": 204_045,
    "squad_qg": 75_722,
    "wmt14": 4_508_785,
    "wmt16": 610_320,
    "icliniq": 24_851,
    "healthcaremagic": 181_122,
}

_BERT = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
#: tokens in the vocabularies of the checkpoints that the rows name
_BERT_CASED, _MBERT, _BART, _GPT = 28_996, 119_547, 50_265, 40_478
#: layers of each half of BART base; ELMER has its shape
_BART_LAYERS = 6


@dataclass(frozen=True)
class Effort:
    """What a row costs.

    Attributes:
        steps: optimizer steps, without early stopping.
        samples: of a step.
        hours: of one `GPU` at `EFFICIENCY`.
    """

    steps: int
    samples: int
    hours: float

    @property
    def short(self) -> str:
        """The hours, for a cell of a table."""
        if self.hours >= 1:
            return f"{self.hours:,.0f} h" if self.hours >= 10 else f"{self.hours:.1f} h"
        return f"{max(round(60 * self.hours), 1)} min"


@cache
def effort_of(row: Row) -> Effort:
    """The effort of a row's recipe on one GPU."""
    recipe = load_recipe(row.recipe_path, list(row.overrides), FinetuneRecipe)
    ds_config = load_ds_config(row.ds_config, world_size=1)
    task = recipe.declared_task
    rows = TRAINING_ROWS.get(row.task) or TRAINING_ROWS[row.task.partition("_")[0]]
    steps = recipe.total_steps(rows, ds_config.global_batch)
    flops = TRAINING_FACTOR * _forward_flops(recipe, Lengths.of(task, recipe.data))
    peak = data_sheet_flops(GPU, ds_config.precision)
    assert peak is not None  # the table of data sheets has this GPU
    seconds = steps * ds_config.global_batch * flops / (EFFICIENCY * peak)
    return Effort(steps, ds_config.global_batch, seconds / 3600)


def _forward_flops(recipe: FinetuneRecipe, lengths: Lengths) -> int:
    """Matrix operations of the longest sample, forward."""
    section: Any = recipe.model
    source, target = np.array([lengths.source]), np.array([lengths.target])
    vocabulary = _MBERT if "multilingual" in _decoder_of(recipe) else _BERT_CASED
    if isinstance(section, ClassifierSection):
        return classifier_flops(SimpleNamespace(**_BERT, num_labels=recipe.declared_task.num_outputs), source)
    if isinstance(section, Seq2SeqSection):
        return seq2seq_flops(_halves(Seq2SeqSize(hidden_size=768, intermediate_size=3072), _BART), source, target)
    if isinstance(section, TransformerSection | Bert2bertSection):
        bert = Seq2SeqSize(hidden_size=768, encoder_layers=12, decoder_layers=12, intermediate_size=3072)
        return seq2seq_flops(_halves(section.size or bert, vocabulary), source, target)
    if isinstance(section, NarSection):
        is_bart = section.encoder is not None
        config = _bnb(section.as_bnb(), _BART if is_bart else vocabulary, _BART_LAYERS if is_bart else None)
        passes = getattr(section, "passes", 1)
        return forward_flops(config, source, target, decoder_passes=passes)
    config = _bnb(_with_slots(section), vocabulary, None)
    if not recipe.declared_task.is_generation:
        config.num_labels = recipe.declared_task.num_outputs
        return classification_flops(config, source)
    return forward_flops(config, source, np.atleast_1d(decoder_lengths(source, config)))


def _with_slots(section: ModelSection) -> ModelSection:
    """The section with what its pre-trained model has saved and it leaves open."""
    if section.checkpoint not in EXPORTS:
        return section
    pretraining = load_recipe(EXPORTS[section.checkpoint], [], PretrainRecipe)
    return pretraining.model.model_copy(update={name: getattr(section, name) for name in section.model_fields_set})


def _decoder_of(recipe: FinetuneRecipe) -> str:
    """The checkpoint that gives the targets their vocabulary."""
    section: Any = recipe.model
    named = (
        recipe.data.target_tokenizer,
        getattr(section, "decoder", None),
        recipe.data.tokenizer,
        getattr(section, "encoder", None),
    )
    return next((name for name in named if name is not None), "")


def _halves(size: Seq2SeqSize, vocabulary: int) -> SimpleNamespace:
    half = {"hidden_size": size.hidden_size, "intermediate_size": size.intermediate_size, "vocab_size": vocabulary}
    return SimpleNamespace(
        encoder=SimpleNamespace(**half, num_hidden_layers=size.encoder_layers),
        decoder=SimpleNamespace(**half, num_hidden_layers=size.decoder_layers),
    )


def _bnb(section: ModelSection, vocabulary: int, layers: int | None) -> BnbConfig:
    """The configuration of a BERT-NAR-BERT whose checkpoints, if it has some, are not read.

    Args:
        section: of the recipe.
        vocabulary: tokens of both halves.
        layers: of each half of the checkpoint; None: as BERT base.
    """
    size = section.size.model_dump() if section.size else {**_BERT, "num_hidden_layers": layers or 12}
    names = ("pad", "cls", "sep", "mask", "unk")
    target = TokenizerVocabulary(vocabulary, {name: number for number, name in enumerate(names)}, "")
    half = {**size, "vocab_size": vocabulary}
    return BnbConfig(encoder=half, decoder=half, **bnb_fields(section, target, target))
