"""The parts of a saved model's README that describe its run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from bnb_ds.checkpoint.run_dir import read_launches, read_recipe
from bnb_ds.systems.bnb import BnbGenerator
from bnb_ds.systems.kinds import GENERATORS
from bnb_ds.tasks.task import Task

_PIPELINE = """```python
from bnb_ds import BnbPipeline

pipeline = BnbPipeline.from_pretrained(".")
print(pipeline([{example!r}]))
```"""


def read_history(run: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Read the recipe of a run, and its launches in order."""
    return read_recipe(run), read_launches(run)


def versions_and_recipe(launch: dict[str, Any], recipe: dict[str, Any]) -> str:
    """The last part of a README, in Markdown: the package versions of a launch, and the recipe."""
    packages = "\n".join(f"| {name} | {version} |" for name, version in launch["packages"].items())
    return f"""| package | version |
|---|---|
| python | {launch["python"]} |
{packages}

The recipe:

```yaml
{yaml.safe_dump(recipe, sort_keys=False).strip()}
```
"""


def usage(task: Task | None, kind: str = "bnb") -> str:
    """How to use a saved model, in Markdown. The example reads and writes text as in training.

    Args:
        task: what the model was fine-tuned for; None: it was only pre-trained.
        kind: the kind of the model.
    """
    if task is None:
        return _PIPELINE.format(example="A sentence with a [MASK] word.")
    if task.is_generation and issubclass(GENERATORS[kind], BnbGenerator):
        return _PIPELINE.format(example="\t".join(f"A text for {name}." for name in task.sources))
    return "Run it on new rows with `bnb-ds predict . --input rows.jsonl --output outputs.jsonl`."
