"""``bnb-ds push``: upload a model directory to the Hugging Face hub, with a README that the hub can read.

The licence and the languages are the author's to say. Scores come from what `bnb-ds evaluate` has written beside the
model. Nothing of the directory itself is changed.
"""

from __future__ import annotations

import json
import shlex
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import HfApi, ModelCard

from bnb_ds.common.files import write_atomic
from bnb_ds.common.hub import HUB_ERRORS, ONNX_FILE, hub_reason
from bnb_ds.errors import CheckpointError, ConfigError
from bnb_ds.evaluate.conditions import is_of_other_outputs, is_partial
from bnb_ds.export.model_card import add_results, hub_data, results, without_paths
from bnb_ds.systems.model_dir import EVALUATION, RECIPE_FILE, saved_data
from bnb_ds.tasks.registry import TASKS
from bnb_ds.tasks.task import HubData

CARD_FILE = "README.md"
_RESULTS = "eval_results.json"


def push(
    model: Path,
    repo: str,
    *,
    license: str | None = None,
    languages: Sequence[str] = (),
    private: bool = False,
    revision: str | None = None,
    message: str | None = None,
) -> str:
    """Upload a model directory, and make the repository if there is none.

    Args:
        model: a directory that ``bnb-ds export`` wrote, in torch or ONNX format.
        repo: OWNER/NAME on the hub.
        license: the hub's identifier of a licence; None: the one that the README names.
        languages: ISO 639-1 codes; none: those that the README names.
        private: make a new repository private.
        revision: branch; None: the main one.
        message: of the commit.

    Returns:
        The address of the commit.

    Raises:
        CheckpointError: the directory is no model.
        ConfigError: no licence is named, or the hub refuses.
    """
    _refuse_other_directories(model)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        # Links, not copies: weights are large.
        shutil.copytree(model, folder, copy_function=_link, ignore=shutil.ignore_patterns(EVALUATION, ".*"))
        _replace(folder / CARD_FILE, complete_card(model, repo, license=license, languages=languages))
        if (model / RECIPE_FILE).is_file():
            recipe = _read(model / RECIPE_FILE, yaml.safe_load)
            _replace(folder / RECIPE_FILE, yaml.safe_dump(without_paths(recipe), sort_keys=False))
        api = HfApi()
        try:
            name = api.create_repo(repo, private=private or None, exist_ok=True).repo_id
            commit = api.upload_folder(
                repo_id=name, folder_path=folder, revision=revision, commit_message=message or "Upload with bnb-ds push"
            )
        except (
            ValueError,
            *HUB_ERRORS,
        ) as error:  # ValueError: the README's block, of which the hub has seen the faults
            raise ConfigError(
                f"{repo}: the hub does not take it: {hub_reason(error)}; check the name, the connection and "
                "`hf auth whoami`"
            ) from None
    return commit.commit_url


def complete_card(model: Path, repo: str, *, license: str | None, languages: Sequence[str]) -> str:
    """The README of a model for the hub: with licence, languages and scores, and an example that names the repository.

    Raises:
        ConfigError: no licence is named; or the README's block for the hub cannot be read.
    """
    path, name = model / CARD_FILE, repo.rpartition("/")[2]
    new = f"---\nlibrary_name: transformers\ntags: [bnb_ds]\n---\n# {name}\n"
    try:
        card = ModelCard(path.read_text(encoding="utf-8") if path.is_file() else new)
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: {' '.join(str(error).split())}; mend the block at its head") from None
    if license is not None:
        card.data.license = license
    if languages:
        card.data.language = list(languages)
    if not card.data.license:
        raise ConfigError(
            f"{path}: names no licence, without which nobody may use the model: give --license, such as apache-2.0"
        )
    for file in sorted((model / EVALUATION).glob(f"*/{_RESULTS}")):
        found = _read(file, _listed)
        if found is not None:
            task, split, scores = found["task"], found["split"], found["scores"]
            add_results(card.data, name, results(task, split, scores, _hub_of(found, model)))
    return str(card).replace('from_pretrained(".")', f'from_pretrained("{repo}")')


def _listed(text: str) -> dict[str, Any] | None:
    """An evaluation that the hub lists; None for others.

    The hub has one place for the score of a data set: only the whole data set, decoded as a user's, may stand there.
    """
    found = json.loads(text)
    if found["task"] not in TASKS or is_of_other_outputs(found) or is_partial(found):
        return None
    return {**found, "task": TASKS[found["task"]], "split": found["split"], "scores": dict(found["scores"])}


def _hub_of(found: dict[str, Any], model: Path) -> HubData | None:
    """The data set of the hub that the rows of an evaluation come from; None: files of the user, or nobody knows."""
    if "hub" in found:
        return None if found["hub"] is None else hub_data(found["task"], {"hub": found["hub"]})
    # Older results do not say it, but the recipe does.
    return hub_data(found["task"], saved_data(model)) if (model / RECIPE_FILE).is_file() else None


def _read(file: Path, parse: Callable[[str], Any]) -> Any:
    try:
        return parse(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise CheckpointError(
            f"{file}: cannot be read ({' '.join(str(error).split())}); restore or remove it"
        ) from None


def _refuse_other_directories(model: Path) -> None:
    if (model / "config.resolved.yaml").is_file():
        export = f"bnb-ds export {shlex.quote(str(model))} NEW"
        raise CheckpointError(f"{model}: is a run; write its model with `{export}`, then push NEW")
    weights = any(model.glob("*.safetensors")) or (model / ONNX_FILE).is_file()
    if not weights or not (model / "config.json").is_file():
        raise CheckpointError(f"{model}: not a model directory; give one that `bnb-ds export` wrote")


def _link(source: str, target: str) -> None:
    Path(target).symlink_to(Path(source).resolve())


def _replace(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    write_atomic(path, text)
