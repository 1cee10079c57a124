"""The output directory of a run: its recorded settings, and the check that a resume has the same settings.

output_dir/
  config.resolved.yaml      the recipe with defaults and overrides written out
  ds_config.resolved.json   the completed DeepSpeed configuration
  launches.jsonl            one line per launch: versions, git revision, data fingerprint, command line
  model/                    config and tokenizer of the model in training
  checkpoints/              checkpoints
  runs/                     TensorBoard logs
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from bnb_ds.checkpoint import store
from bnb_ds.checkpoint.lasting import EXTEND_FLAG, lasting_ds_config, lasting_recipe
from bnb_ds.common.files import disk_errors, write_atomic
from bnb_ds.config.deepspeed import DsConfig
from bnb_ds.config.loading import differences, dump_recipe
from bnb_ds.config.sections import TrainingRecipe
from bnb_ds.errors import CheckpointError, ConfigError

_PACKAGES = ("bnb_ds", "torch", "deepspeed", "transformers", "tokenizers", "numpy")


@dataclass(frozen=True)
class RunDir:
    """The paths of a run, and the settings of this launch."""

    recipe: TrainingRecipe
    ds_config: DsConfig
    data_fingerprint: str
    #: of the model that this one learns from; empty: there is none
    teacher_fingerprint: str = ""

    @property
    def path(self) -> Path:
        return Path(self.recipe.output_dir)

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def tensorboard(self) -> Path:
        return self.path / "runs"

    def find_resume(
        self, resume: str, *, weights_only: bool = False, extend: bool = False
    ) -> tuple[Path | None, list[str]]:
        """Find the checkpoint to start from.

        Args:
            resume: value of the flag ``--resume``: ``never`` (start in a fresh directory), ``auto``, or the path of a
                checkpoint or run.
            weights_only: the optimizer starts fresh, so the DeepSpeed configuration may differ.
            extend: the length of the run may differ.

        Returns:
            The checkpoint to load, or None to start at step 0; and notes for the user.

        Raises:
            ConfigError: the directory holds a run and ``resume`` is ``never``; or settings differ (all are listed).
            CheckpointError: the named path holds no whole checkpoint.
        """
        if resume == "never":
            if holds_run(self.path):
                raise ConfigError(
                    f"output_dir {self.path}: already holds a run; add --resume auto to continue it, or choose another"
                )
            return None, []
        if resume == "auto":
            if not holds_run(self.path):
                return None, []
            notes = self._refuse_other_settings(self.path, weights_only, extend)
            found, passed_over = store.newest_intact(self.checkpoints)
            return found, [*notes, *passed_over]
        return self._named_checkpoint(Path(resume), weights_only, extend)

    def _named_checkpoint(self, path: Path, weights_only: bool, extend: bool) -> tuple[Path, list[str]]:
        found, notes = locate_checkpoint(path)
        run = run_of(found)
        if holds_run(self.path) and self.path.resolve() != run.resolve():
            raise ConfigError(
                f"output_dir {self.path}: holds a different run than --resume {path}; choose a new output_dir"
            )
        return found, [*notes, *self._refuse_other_settings(run, weights_only, extend)]

    def _refuse_other_settings(self, run: Path, weights_only: bool, extend: bool) -> list[str]:
        """Raise ConfigError for differences that change the training; return notes on differences in software."""
        old_recipe = with_defaults(read_recipe(run), type(self.recipe))
        old_ds = read_ds_config(run)
        ours, theirs = (lasting_recipe(values, extend=extend) for values in (self.recipe.values(), old_recipe))
        changes = list(differences(ours, theirs))
        if not weights_only:
            changes += differences(lasting_ds_config(self.ds_config.values), lasting_ds_config(old_ds))
        first = _first_launch(run)
        changes.extend(differences(self.data_fingerprint, first["data_fingerprint"], "data"))
        teachers = self.teacher_fingerprint, first.get("teacher_fingerprint", "")
        changes.extend(differences(*teachers, "the files of layer_distillation.teacher"))
        if changes:
            length_only = lasting_recipe(ours, extend=True) == lasting_recipe(theirs, extend=True)
            way_out = f", or add {EXTEND_FLAG} to change the length of this run" if length_only else ""
            raise ConfigError(
                f"{run}: was started with different settings: {'; '.join(changes)};"
                f" restore them{way_out}, or choose a new output_dir"
            )
        software = ("python", "packages", "git_revision")
        ours, theirs = ({key: launch[key] for key in software} for launch in (provenance(), first))
        return [
            f"note         this run was started with different software: {line}" for line in differences(ours, theirs)
        ]

    def record_launch(self, start_step: int, *, weights_only: bool = False) -> None:
        """Write the resolved settings at the first launch, and one line of provenance at every launch.

        Args:
            start_step: optimizer steps done before this launch.
            weights_only: the optimizer starts fresh, so this launch's DeepSpeed configuration replaces the run's.

        Raises:
            DataError: the disk is full or cannot be written.
        """
        with disk_errors(self.path):
            self._write_launch(start_step, weights_only)

    def _write_launch(self, start_step: int, weights_only: bool) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        launch = {**provenance(), "start_step": start_step, "world_size": self.ds_config.world_size}
        launches = self.path / "launches.jsonl"
        # A launch that was killed while it wrote here has left a line without end.
        is_torn = launches.is_file() and launches.read_bytes()[-1:] not in (b"", b"\n")
        with open(launches, "a", encoding="utf-8") as file:
            launch["data_fingerprint"] = self.data_fingerprint
            if self.teacher_fingerprint:
                launch["teacher_fingerprint"] = self.teacher_fingerprint
            file.write("\n" * is_torn + json.dumps(launch) + "\n")
        if weights_only or not holds_run(self.path) or not (self.path / "ds_config.resolved.json").exists():
            write_atomic(self.path / "ds_config.resolved.json", json.dumps(self.ds_config.values, indent=2) + "\n")
        # Written last: this file marks the directory as a run. Fields that may change are those of the last launch.
        write_atomic(self.path / "config.resolved.yaml", dump_recipe(self.recipe))


def read_recipe(run: Path) -> dict[str, Any]:
    """The recipe of a run, with defaults and overrides written out.

    Raises:
        CheckpointError: it cannot be read.
    """
    return _recorded(run / "config.resolved.yaml", yaml.safe_load)


def read_ds_config(run: Path) -> dict[str, Any]:
    """The completed DeepSpeed configuration of a run.

    Raises:
        CheckpointError: it cannot be read.
    """
    return _recorded(run / "ds_config.resolved.json", json.loads)


def read_launches(run: Path) -> list[dict[str, Any]]:
    """The records of the launches of a run, in order; lines that a killed launch left unfinished are passed over.

    Raises:
        CheckpointError: there is none, or they cannot be read.
    """
    return _recorded(run / "launches.jsonl", _whole_lines)["launches"]


def _whole_lines(text: str) -> dict[str, Any]:
    launches = []
    for line in text.splitlines():
        with suppress(ValueError):
            launches.append(json.loads(line))
    return {"launches": launches} if launches else {}


def _recorded(path: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
    """What a file of a run says."""
    try:
        values = parse(path.read_text(encoding="utf-8"))
        reason = None if isinstance(values, dict) and values else "is not what a launch writes"
    except OSError as error:
        reason = error.strerror or str(error)
    except (ValueError, yaml.YAMLError) as error:
        reason = f"cannot be read ({' '.join(str(error).split())})"
    if reason is not None:
        raise CheckpointError(f"{path}: {reason}; restore it from a copy of the run")
    return values


def locate_checkpoint(path: Path) -> tuple[Path, list[str]]:
    """Find the whole checkpoint at a path: the path itself, or the newest one in a run or a checkpoints directory.

    Raises:
        CheckpointError: there is none, or the one named is damaged.
    """
    if path in store.whole_checkpoints(path.parent):
        damage = store.find_damage(path)
        if damage:
            raise CheckpointError(f"{path}: {damage}; name an older checkpoint or the run's directory")
        return path, []
    for directory in (path / "checkpoints", path):
        found, notes = store.newest_intact(directory)
        if found is not None:
            return found, notes
    raise CheckpointError(f"{path}: no whole checkpoint here; name a step_* directory or a run's output_dir")


def run_of(found: Path) -> Path:
    """Return the run directory that a checkpoint belongs to.

    Raises:
        CheckpointError: the checkpoint was moved out of its run.
    """
    # A path may be named from inside the run, and then has no such parents.
    run = Path(os.path.abspath(found)).parent.parent
    if not holds_run(run):
        raise CheckpointError(
            f"{found}: its run ({run}) has no config.resolved.yaml; keep checkpoints inside their run"
        )
    return run


def provenance() -> dict[str, Any]:
    """Versions, git revision and command line of this process."""
    return {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "git_revision": _git_revision(),
    }


def _git_revision() -> str | None:
    try:
        result = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()


def with_defaults(recipe: dict[str, Any], schema: type[TrainingRecipe]) -> dict[str, Any]:
    """A recipe that an older release wrote, completed with the fields added since then."""
    try:
        return schema.model_validate(recipe).values()
    except ValidationError:  # a field was removed since; the comparison will name it
        return recipe


def holds_run(path: Path) -> bool:
    """Whether there is something to continue. A launch that died before its first checkpoint has left nothing."""
    return (path / "config.resolved.yaml").is_file() and bool(store.whole_checkpoints(path / "checkpoints"))


def _first_launch(run: Path) -> dict[str, Any]:
    """The record of the launch that began the run; those before it came to nothing."""
    launches = read_launches(run)
    begun = [launch for launch in launches if launch["start_step"] == 0]
    return begun[-1] if begun else launches[0]
