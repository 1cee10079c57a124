"""The files that come with the package beside its modules: recipes, DeepSpeed JSONs, launch scripts, two programs.

In a checkout they lie in `runs/` and `ds_configs/` at its root. A wheel has the same folders below the package, in a
folder ``shipped``, where setup.py puts them. So the names in the documents hold in both: a relative name that is no
file of the user stands for the shipped file of that name.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from bnb_ds.errors import ConfigError

_PACKAGE = Path(__file__).resolve().parents[1]
_IN_WHEEL = _PACKAGE / "shipped"
#: the directory that holds `runs/` and `ds_configs/`
ROOT = _IN_WHEEL if _IN_WHEEL.is_dir() else _PACKAGE.parent

_RECIPES = "runs/recipes"
_DS_CONFIGS = "ds_configs"
#: short names of what a user starts
PROGRAMS = {
    "pretrain": "runs/pretrain.py",
    "finetune": "runs/finetune.py",
    "hostfile": "runs/launch/hostfile.sh",
    "torchrun": "runs/launch/torchrun.sh",
    "slurm": "runs/slurm/pretrain.sbatch",
    "slurm-prep": "runs/slurm/prep.sbatch",
}


def recipes() -> dict[str, Path]:
    """The shipped recipes: name, such as ``pretrain/tiny``, -> file."""
    folder = ROOT / _RECIPES
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.yaml"))}


def ds_configs() -> dict[str, Path]:
    """The shipped DeepSpeed JSONs: name, such as ``cpu_debug``, -> file."""
    return {path.stem: path for path in sorted((ROOT / _DS_CONFIGS).glob("*.json"))}


def find_recipe(path: str | Path) -> Path:
    """The user's file, else the shipped recipe that ``path`` names; ``path`` itself if there is neither.

    ``runs/recipes/pretrain/tiny.yaml``, ``pretrain/tiny.yaml`` and ``pretrain/tiny`` name the same recipe.
    """
    return _find(Path(path), recipes(), _RECIPES, ".yaml")


def find_ds_config(path: str | Path) -> Path:
    """The same for a DeepSpeed JSON: ``ds_configs/cpu_debug.json``, ``cpu_debug.json`` or ``cpu_debug``."""
    return _find(Path(path), ds_configs(), _DS_CONFIGS, ".json")


def expand_recipes(names: Sequence[str]) -> list[str]:
    """Replace a pattern such as ``runs/recipes/finetune/glue/*.yaml``, which the shell leaves as it is where it matches
    no files, by the shipped recipes that it matches."""
    expanded: list[str] = []
    for name in names:
        pattern = name.removeprefix(f"{_RECIPES}/").removesuffix(".yaml")
        matching = [known for known in recipes() if fnmatch(known, pattern)] if "*" in pattern else []
        expanded += matching or [name]
    return expanded


def locate(name: str) -> Path:
    """The shipped file or folder of a name: a key of `PROGRAMS`, a recipe, a JSON, or a path below `ROOT`.

    Raises:
        ConfigError: there is none.
    """
    named = {**{key: ROOT / path for key, path in PROGRAMS.items()}, **recipes(), **ds_configs()}
    if name in named:
        return named[name]
    if name.split("/")[0] in ("runs", _DS_CONFIGS) and ".." not in name.split("/") and (ROOT / name).exists():
        return ROOT / name
    by_leaf = {known.rpartition("/")[2]: known for known in named}
    close = difflib.get_close_matches(name, [*named, *by_leaf], n=1)
    hint = f"did you mean {by_leaf.get(close[0], close[0])}? " if close else ""
    raise ConfigError(f"{name}: nothing of this name is shipped; {hint}`bnb-ds recipes` lists the names")


def _find(path: Path, known: dict[str, Path], folder: str, suffix: str) -> Path:
    if path.exists() or path.is_absolute():
        return path
    return known.get(path.as_posix().removeprefix(f"{folder}/").removesuffix(suffix), path)
