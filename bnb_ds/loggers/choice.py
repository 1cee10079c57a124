"""Find the loggers that a recipe names in ``tracking.loggers``.

A name is one of this project's, one of another package's, or a class of the user's own: ``MODULE:CLASS`` for an
installed module, ``FILE.py:CLASS`` for a file. Another package announces its class in the entry-point group
``bnb_ds.loggers``.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bnb_ds.errors import ConfigError, how_to_install, nearest
from bnb_ds.loggers.logger import Logger

#: entry points of other packages: name -> a function without arguments (a class, for example) that makes a `Logger`
GROUP = "bnb_ds.loggers"
_OF_THIS_PROJECT = {
    "tensorboard": "bnb_ds.loggers.tensorboard:TensorBoardLogger",
    "wandb": "bnb_ds.loggers.wandb:WandbLogger",
    "mlflow": "bnb_ds.loggers.mlflow:MlflowLogger",
    "trackio": "bnb_ds.loggers.trackio:TrackioLogger",
}
#: loggers whose package, module and extra of this project have their name
_EXTRAS = ("wandb", "mlflow", "trackio")


def find_loggers(names: Sequence[str]) -> dict[str, Callable[[], Logger]]:
    """The loggers of a recipe: name -> what makes the logger. Nothing is started.

    Raises:
        ConfigError: no logger has the name, it is named twice, or its package cannot be imported.
    """
    if len(set(names)) < len(names):
        raise ConfigError(f"tracking.loggers: {', '.join(names)}: name each logger once")
    return {name: _find(name) for name in names}


def _find(name: str) -> Callable[[], Logger]:
    if name in _EXTRAS and importlib.util.find_spec(name) is None:
        raise ConfigError(f"tracking.loggers: {name} is not installed: {how_to_install(name)}, or remove it")
    others = {entry.name: entry for entry in importlib.metadata.entry_points(group=GROUP)}
    try:
        if name in _OF_THIS_PROJECT:
            found = _attribute(_OF_THIS_PROJECT[name])
        elif name in others:
            found = others[name].load()
        elif ":" in name:
            found = _attribute(name)
        else:
            known = nearest(name, [*_OF_THIS_PROJECT, *others])
            own = "write a class of your own as MODULE:CLASS or FILE.py:CLASS"
            raise ConfigError(f"tracking.loggers: there is no logger {name!r}: {known} ({own})")
    except ConfigError:
        raise
    except Exception as error:  # code of others, which may fail in any way
        raise ConfigError(f"tracking.loggers: {name} cannot be loaded ({_said(error)}); mend or remove it") from error
    if not callable(found):
        raise ConfigError(f"tracking.loggers: {name} is no class of loggers, but {found!r}; name a class")
    return found


def start_failed(name: str, error: Exception) -> ConfigError:
    """The error of a launch whose logger cannot start."""
    return ConfigError(f"tracking.loggers: {name} cannot start ({_said(error)}); mend its settings or remove it")


def _attribute(place: str) -> Any:
    module, _, attribute = place.rpartition(":")
    return getattr(_file(Path(module)) if module.endswith(".py") else importlib.import_module(module), attribute)


def _file(path: Path) -> Any:
    """The module in a file, which runs once. Dataclasses need it to be known under its name."""
    known = sys.modules.get(path.stem)
    if known is not None and getattr(known, "__file__", None) == str(path.absolute()):
        return known
    path = path.absolute()
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)
    spec.loader.exec_module(module)
    return module


def _said(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
