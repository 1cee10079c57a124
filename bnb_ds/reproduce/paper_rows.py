"""The rows of the paper's tables: for each system and task the recipe, what it needs, and the command.

Source: Sohrab et al., BERT-NAR-BERT, IEEE Access 2024, Tables 1 to 4.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from bnb_ds.errors import ConfigError, nearest
from bnb_ds.tasks.registry import get_task

_PROGRAM = 'deepspeed "$(bnb-ds path finetune)"'
#: recipes with settings of ours, which most rows run; and those with the paper's own, for the rows "as published"
FINETUNE, PAPER_RECIPES = "runs/recipes/finetune", "runs/recipes/paper"
_AS_PUBLISHED = ", as published"
#: steps between two evaluations in the paper's code (glue_task/run-glue-*.sh); its seed, where it is not the recipe's
_GLUE_INTERVALS = {
    "cola": 250,
    "sst2": 4000,
    "mrpc": 200,
    "stsb": 200,
    "qqp": 20000,
    "mnli": 20000,
    "qnli": 4000,
    "rte": 150,
    "wnli": 25,
}
_GLUE_SEEDS = {"qqp": 66}
_GLUE_RATES = (2e-5, 3e-5, 4e-5)
_OTHER_RATES = "5e-5; the paper tries 2e-5, 3e-5 and 4e-5, too: give each with --deepspeed-config and --runs of its own"
_TEACHER = "the teacher has settings of ours"
_ONE_EPOCH = "one epoch of pre-training, as in the paper; its code fine-tunes a checkpoint of ten"
_GLUE = (*_GLUE_INTERVALS,)
_WMT = ("wmt14_en_de", "wmt14_de_en", "wmt16_en_ro", "wmt16_ro_en")
_BERT, _MBERT = "google-bert/bert-base-cased", "google-bert/bert-base-multilingual-cased"
#: pre-trained model that rows begin with -> the recipe that it is an export of
EXPORTS = {
    "work/models/paper/wikipedia": "runs/recipes/paper/wikipedia.yaml",
    "work/models/wikipedia_base": "runs/recipes/pretrain/wikipedia_base.yaml",
    "work/models/pubmed_base": "runs/recipes/pretrain/pubmed_base.yaml",
}
_PAPER_WIKIPEDIA, _WIKIPEDIA, _PUBMED = (f"{model} (an exported run of {recipe})" for model, recipe in EXPORTS.items())
_OPTIMUS = "work/models/optimus (its encoder checkpoint, converted with bnb-ds import-optimus)"
_WITHOUT = "BnB without additional pre-training"
#: what an export of runs/recipes/paper/wikipedia.yaml holds, for a model that begins with BERT
_PAPER_SLOTS = (
    "model.latent_size=8",
    "model.decoder_length_ratio=1.0",
    "model.decoder_length_min=512",
    "model.decoder_length_max=512",
    "model.decoder_positions=absolute",
)

#: columns of speed: milliseconds a sample, one at a time; seconds of the whole split in batches of `WHOLE_BATCH`
SPEED = ("ms", "s")
WHOLE_BATCH = 32
_SUMMARIES = ("rouge1", "rouge2", "rougeL", *SPEED)
#: task -> the columns that its table has, in its order: scores, and speed
COLUMNS = {
    **{task: (get_task(task).main_score,) for task in _GLUE},
    **dict.fromkeys(_WMT, ("bleu", *SPEED)),
    "xsum": _SUMMARIES,
    "squad_qg": ("rougeL", "bleu4", *SPEED),
    "icliniq": _SUMMARIES,
    "healthcaremagic": _SUMMARIES,
}
#: column -> its heading; the others keep their name
TITLES = {
    "rouge1": "R-1",
    "rouge2": "R-2",
    "rougeL": "R-L",
    "bleu4": "B-4",
    "bleu": "BLEU",
    "ms": "ms a sample",
    "s": "s, whole split",
}
#: the split that a table scores; every other task is scored on ``test``
SPLITS = {**dict.fromkeys(_GLUE, "validation"), "mnli": "validation_matched"}


@dataclass(frozen=True)
class Row:
    """One system on one task.

    Attributes:
        table: number of the paper's table.
        task: name of the task.
        system: name of the system in the paper; with ", as published" if the settings are the paper's own, too.
        recipe: file under `FINETUNE`, or under `PAPER_RECIPES` if it is as published.
        needs: checkpoints and data that the run needs.
        overrides: overrides of the recipe.
        note: in what the run differs from what the name promises.
        rates: peak learning rates that the paper tries besides that of the row; one of them makes no other row.
    """

    table: int
    task: str
    system: str
    recipe: str
    needs: str
    overrides: tuple[str, ...] = ()
    note: str = ""
    rates: tuple[float, ...] = ()

    @property
    def name(self) -> str:
        """What ``--run`` takes, for example ``xsum/bert2bert``."""
        return f"{self.task}/{re.sub('[^a-z0-9]+', '-', self.system.lower()).strip('-')}"

    @property
    def is_as_published(self) -> bool:
        """Whether the settings are the paper's own."""
        return self.system.endswith(_AS_PUBLISHED)

    @property
    def published_system(self) -> str:
        """The name under which the paper has numbers of this system."""
        return self.system.removesuffix(_AS_PUBLISHED)

    @property
    def output_dir(self) -> str:
        """The output directory of the run, below ``work/runs``."""
        named = [value.removeprefix("output_dir=work/runs/") for value in self.overrides if "output_dir=" in value]
        return named[0] if named else "paper/" * self.is_as_published + self.recipe.removesuffix(".yaml")

    @property
    def split(self) -> str:
        """The split that the paper's table scores."""
        return SPLITS.get(self.task, "test")

    @property
    def ds_config(self) -> str:
        if self.is_as_published:
            return f"ds_configs/paper_{self.recipe.removesuffix('.yaml').removeprefix('squad_')}.json"
        return f"ds_configs/finetune_{'glue' if self.table == 1 else 'bf16'}.json"

    @property
    def recipe_path(self) -> str:
        return f"{PAPER_RECIPES if self.is_as_published else FINETUNE}/{self.recipe}"

    @property
    def command(self) -> str:
        more = "".join(f" {shlex.quote(override)}" for override in self.overrides)
        return f"{_PROGRAM} {self.recipe_path} --deepspeed-config {self.ds_config}{more}"


def rows() -> Iterator[Row]:
    """Yield all rows, table by table."""
    yield from _glue()
    yield from _english()
    yield from _translation()
    yield from _medical()


def find_row(name: str) -> Row:
    """The row of a name.

    Raises:
        ConfigError: there is none.
    """
    named = {row.name: row for row in rows()}
    if name not in named:
        raise ConfigError(f"--run {name}: no such row; {nearest(name, named)}; `bnb-ds reproduce --list` names all")
    return named[name]


def _glue() -> Iterator[Row]:
    checkpoints = {"BERT": _BERT, "OpenAI GPT": "openai-community/openai-gpt", "Optimus": "work/models/optimus"}
    for task in _GLUE:
        recipe = f"glue/{task}.yaml"
        for system, checkpoint in checkpoints.items():
            changes = (
                f"model={{kind: classifier, checkpoint: {checkpoint}}}",
                f"output_dir=work/runs/glue_{system.split()[-1].lower()}/{task}",
            )
            needs = _OPTIMUS if system == "Optimus" else checkpoint
            yield Row(1, task, system, recipe, f"{needs}, nyu-mll/glue", changes)
        yield Row(1, task, "BnB", recipe, f"{_WIKIPEDIA}, nyu-mll/glue")
        yield _glue_as_published(task)


def _glue_as_published(task: str) -> Row:
    changes = [f"task={task}", f"intervals.eval_steps={_GLUE_INTERVALS[task]}"]
    changes += [f"seed={_GLUE_SEEDS[task]}"] if task in _GLUE_SEEDS else []
    needs = f"{_PAPER_WIKIPEDIA}, nyu-mll/glue"
    own = (*changes, f"output_dir=work/runs/paper/glue/{task}")
    return Row(1, task, f"BnB{_AS_PUBLISHED}", "glue.yaml", needs, own, _OTHER_RATES, _GLUE_RATES)


def _english() -> Iterator[Row]:
    squad = "rajpurkar/squad, work/data/du2017 (the document lists of Du et al., 2017)"
    for task, data in (("xsum", "EdinburghNLP/xsum"), ("squad_qg", squad)):
        autoregressive, own = f"{task}_bert2bert.yaml", f"{task}.yaml"

        def kind(system: str, model: str, needs: str, note: str = "", task=task, recipe=autoregressive) -> Row:
            folder = re.sub("[^a-z0-9]+", "_", system.lower()).strip("_")
            changes = [f"model={{{model}}}", f"output_dir=work/runs/{task}_{folder}"]
            has_own = "checkpoint:" in model or "encoder:" in model
            changes += [] if has_own else [f"data.tokenizer={_BERT}"]
            return Row(2, task, system, recipe, needs, tuple(changes), note)

        tokenizer = f"{_BERT} (its tokenizer), {data}"
        yield kind("Transformer", "kind: transformer", tokenizer)
        bart = "facebook/bart-base"
        yield kind("BART", f"kind: seq2seq, checkpoint: {bart}", f"{bart}, {data}")
        yield Row(2, task, "BERT2BERT", autoregressive, f"{_BERT}, {data}")
        yield kind("iNAT", "kind: inat", tokenizer)
        passes = "10 passes; the paper does not state the number"
        yield kind("CMLM, semi-autoregressive", "kind: cmlm", tokenizer, passes)
        yield kind("CMLM", "kind: cmlm, iterations: 1", tokenizer)
        yield kind("NAT", "kind: nat", tokenizer, "no fertilities: slots hold a uniform copy of the source")
        elmer = "RUCAIBox/elmer"
        exits = "kind: elmer, exit_entropy: 0.5"
        threshold = "the published threshold of the exits could not be found"
        yield kind("ELMER-hard", f"{exits}, encoder: {elmer}", f"{elmer}, {data}", threshold)
        yield kind("ELMER-soft", f"kind: elmer, encoder: {elmer}", f"{elmer}, {data}")
        changes = (
            f"model={{kind: bnb, encoder: {_BERT}, decoder_length_ratio: 0.5, decoder_length_min: 64}}",
            f"output_dir=work/runs/{task}_without",
        )
        yield Row(2, task, _WITHOUT, own, f"{_BERT}, {data}", changes)
        changes = ("model.checkpoint=null", f"model.encoder={_BERT}", *_PAPER_SLOTS)
        changes += (f"output_dir=work/runs/paper/{task}_without",)
        yield Row(2, task, f"{_WITHOUT}{_AS_PUBLISHED}", own, f"{_BERT}, {data}", changes)
        yield Row(2, task, "BnB", own, f"{_WIKIPEDIA}, {data}")
        yield Row(2, task, f"BnB{_AS_PUBLISHED}", own, f"{_PAPER_WIKIPEDIA}, {data}", note=_ONE_EPOCH)


def _translation() -> Iterator[Row]:
    for task in _WMT:
        data, own = f"wmt/{task[:5]}", f"{task}.yaml"
        for system, name in (("Transformer", "transformer"), ("BERT2BERT", "bert2bert")):
            changes = (f"task={task}", f"output_dir=work/runs/wmt_{name}/{task}")
            needs = f"{_MBERT}{' (its tokenizer)' * (name == 'transformer')}, {data}"
            yield Row(3, task, system, f"wmt_{name}.yaml", needs, changes)
        distilled = f"work/data/{task}.distilled.jsonl"
        teacher = f"{distilled} (bnb-ds distill work/runs/wmt_transformer/{task} --output {distilled})"
        targets = (f"data.train={distilled}", f"data.hub={data}")
        tokenizer, checkpoints = f"{_MBERT} (its tokenizer), {data}", f"{_BERT}, {_MBERT}, {data}"
        random = ("model={kind: bnb, size: {}}", f"data.tokenizer={_MBERT}", f"output_dir=work/runs/{task}_random")
        yield Row(3, task, "BnB random", own, tokenizer, random)
        yield Row(3, task, "BnB mBERT", own, checkpoints)
        changes = (*targets, f"output_dir=work/runs/{task}_distilled")
        yield Row(3, task, "BnB mBERT dist.", own, f"{checkpoints}, {teacher}", changes)
        random = ("model.encoder=null", "model.decoder=null", "model.size={}", f"data.tokenizer={_MBERT}")
        for system, folder, changes, needs, note in (
            ("BnB random", f"{task}_random", random, tokenizer, ""),
            ("BnB mBERT", task, (), f"{_MBERT}, {data}", ""),
            ("BnB mBERT dist.", f"{task}_distilled", targets, f"{_MBERT}, {data}, {teacher}", _TEACHER),
        ):
            changes = (f"task={task}", *changes, f"output_dir=work/runs/paper/{folder}")
            yield Row(3, task, f"{system}{_AS_PUBLISHED}", "translation.yaml", needs, changes, note)


def _medical() -> Iterator[Row]:
    for task in ("icliniq", "healthcaremagic"):
        data = f"work/data/{task}.jsonl"
        yield Row(4, task, "BART", f"{task}_bart.yaml", f"facebook/bart-base, {data}")
        yield Row(4, task, "BioBART", f"{task}_biobart.yaml", f"GanjinZero/biobart-base, {data}")
        yield Row(4, task, "BnB", f"{task}.yaml", f"{_PUBMED}, {data}")
