"""The README of a saved model: what the hub reads of it, how the model is used, and how it was trained.

Paths of the machine that trained a model are no part of it: names of files and directories stand in their place.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData

from bnb_ds.checkpoint.run_dir import read_launches, read_recipe
from bnb_ds.systems.bnb import BnbGenerator
from bnb_ds.systems.kinds import GENERATORS
from bnb_ds.tasks.examples import SPLITS
from bnb_ds.tasks.task import HubData, Task

#: of every model, and of a BERT-NAR-BERT
_TAGS, _TAGS_OF_BNB = ["bnb_ds"], ["bert-nar-bert", "non-autoregressive"]
#: a score of ours -> the hub's name of the metric
METRICS = {
    "accuracy": "accuracy",
    "f1": "f1",
    "matthews_correlation": "matthews_correlation",
    "pearson": "pearsonr",
    "spearman": "spearmanr",
    "rouge1": "rouge",
    "rouge2": "rouge",
    "rougeL": "rouge",
    "bleu": "sacrebleu",
    "bleu4": "sacrebleu",
}
#: a metric of a task -> the hub's name; others are of our own
_METRICS_OF_TASKS = {"rouge": "rouge", "sacrebleu": "sacrebleu", "mcc": "matthews_correlation", **METRICS}
#: OWNER/NAME, or a name that the hub has without an owner
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
#: an absolute path, or one in a home directory; group 1 is its last part
_ABSOLUTE = re.compile(r"(?<![\w:/.*-])~?(?:/[^/,'\"\[\]{}=:;]+)*/([^/,'\"\[\]{}=:;]+)/?")

_PIPELINE = """```python
from bnb_ds import BnbPipeline

pipeline = BnbPipeline.from_pretrained(".")
print(pipeline([{example!r}]))
```"""


def read_history(run: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Read the recipe of a run, and its launches in order."""
    return read_recipe(run), read_launches(run)


def without_paths(value: Any) -> Any:
    """The same JSON value, with the last part of each absolute path in the path's place."""
    if isinstance(value, dict):
        return {key: without_paths(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_paths(inner) for inner in value]
    return _ABSOLUTE.sub(r"\1", value) if isinstance(value, str) else value


def metadata(
    recipe: dict[str, Any], *, task: Task | None = None, kind: str = "bnb", pipeline_tag: str | None = None
) -> ModelCardData:
    """What the hub reads of a model: library, task, languages, data sets, metrics, and the models it began with.

    Args:
        recipe: of its run.
        task: what it was fine-tuned for; None: it was only pre-trained.
        kind: the kind of the model.
        pipeline_tag: the hub's name of what it does; None: that of the task.
    """
    section, data = recipe.get("model", {}), recipe.get("data", {})
    started = [section.get(key) for key in ("checkpoint", "encoder", "decoder")]
    bases = list(dict.fromkeys(base for base in started if _is_hub_name(base)))
    hub = hub_data(task, data)
    metrics = dict.fromkeys(_METRICS_OF_TASKS[metric] for metric in _metrics(task) if metric in _METRICS_OF_TASKS)
    return ModelCardData(
        library_name="transformers",
        tags=[*(_TAGS_OF_BNB if kind == "bnb" else []), *_TAGS],
        language=list(task.languages) or None if task else None,
        base_model=bases or None,
        datasets=[hub.name] if hub else None,
        metrics=list(metrics) or None,
        pipeline_tag=pipeline_tag or (task.pipeline_tag if task else None),
    )


def hub_data(task: Task | None, data: Mapping[str, Any]) -> HubData | None:
    """The data set of the hub that rows come from; None: they come from files or a directory of the user.

    Args:
        task: None: a model that was only pre-trained.
        data: the ``data`` section of a recipe; empty: the task's own data.
    """
    # With a file for one split, no single data set is what the rows come from.
    if any(data.get(split) is not None for split in SPLITS):
        return None
    own, name = task.hub if task else None, data.get("hub")
    if name is None:
        return own
    return HubData(name, own.config if own else None) if _is_hub_name(name) else None


def results(task: Task, split: str, scores: Mapping[str, Any], hub: HubData | None) -> list[EvalResult]:
    """Scores of a split, as the hub lists them beside a model. Those of no metric of the hub are left out.

    Args:
        task: what was scored.
        split: our name of the split.
        scores: name -> value.
        hub: the data set that the rows come from, see `hub_data`; None: files of the user, whose scores are not those
            of the task's data set on the hub.
    """
    title = task.title if hub or not task.hub else f"{task.title}, own files"
    return [
        EvalResult(
            task_type=task.pipeline_tag,
            dataset_type=hub.name if hub else task.name,
            dataset_name=title,
            dataset_config=hub.config if hub else None,
            dataset_split=split,
            metric_type=METRICS[name],
            metric_name=name,
            metric_value=value,
        )
        for name, value in scores.items()
        if name in METRICS and isinstance(value, int | float) and math.isfinite(value)
    ]


def add_results(data: ModelCardData, name: str, found: list[EvalResult]) -> None:
    """List results of a model of this name; a new one replaces an old one of the same metric and split."""
    kept = {(old.dataset_name, old.dataset_split, old.metric_name): old for old in data.eval_results or []}
    kept |= {(new.dataset_name, new.dataset_split, new.metric_name): new for new in found}
    if kept:
        data.eval_results = list(kept.values())
        data.model_name = name


def front_matter(data: ModelCardData) -> str:
    """The block at the head of a README that the hub reads."""
    return f"---\n{data.to_yaml().strip()}\n---\n"


def versions_and_recipe(launch: dict[str, Any], recipe: dict[str, Any]) -> str:
    """The last part of a README, in Markdown: the package versions of a launch, and the recipe."""
    packages = "\n".join(f"| {name} | {version} |" for name, version in launch["packages"].items())
    return f"""| package | version |
|---|---|
| python | {launch["python"]} |
{packages}

The recipe:

```yaml
{yaml.safe_dump(without_paths(recipe), sort_keys=False).strip()}
```
"""


def command_of(launch: dict[str, Any]) -> str:
    """The command of a launch."""
    return " ".join(without_paths(launch["command"]))


def usage(task: Task | None, kind: str = "bnb", mask: str | None = "[MASK]") -> str:
    """How to use a saved model, in Markdown. The example reads and writes text as in training.

    Args:
        task: what the model was fine-tuned for; None: it was only pre-trained.
        kind: the kind of the model.
        mask: the mask token of the tokenizer; None: it has none.
    """
    if task is None:
        return _PIPELINE.format(example=f"A sentence with a {mask} word." if mask else "A sentence.")
    if task.is_generation and issubclass(GENERATORS[kind], BnbGenerator):
        return _PIPELINE.format(example="\t".join(f"A text for {name}." for name in task.sources))
    return "Run it on new rows with `bnb-ds predict . --input rows.jsonl --output outputs.jsonl`."


def _metrics(task: Task | None) -> tuple[str, ...]:
    return task.metrics if task else ()


def _is_hub_name(name: str | None) -> bool:
    return name is not None and _HUB_NAME.fullmatch(name) is not None and not Path(name).exists()
