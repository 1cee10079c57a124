"""The wheel of this checkout, installed into a directory of its own, and what a user runs from it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests import launching
from tests.fork_server import ForkServer

PACKAGES = ("bnb_ds", "data_prep")
#: what setup.py reads
SOURCES = ("setup.py", "pyproject.toml", "README.md", "LICENSE", *PACKAGES, "runs", "ds_configs")
_PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]


def build_wheel(folder: Path) -> Path:
    """Build the wheel from a copy of the sources, so that no build leaves its files in the checkout."""
    source = folder / "source"
    source.mkdir()
    for name in SOURCES:
        path = launching.REPOSITORY / name
        if path.is_dir():
            shutil.copytree(path, source / name, ignore=shutil.ignore_patterns("__pycache__", "work"))
        else:
            shutil.copy(path, source)
    command = [*_PIP, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source)]
    subprocess.run(command, check=True, env=_without_paths())
    shutil.rmtree(source)
    (wheel,) = folder.glob("bnb_ds-*.whl")
    return wheel


class Installed:
    """An installed wheel. The packages that it needs are those of this environment; the checkout is not on any path.

    Attributes:
        site: where it is installed.
    """

    def __init__(self, folder: Path) -> None:
        wheel = build_wheel(folder)
        self.site = folder / "site"
        command = [*_PIP, "install", "--no-deps", "--no-compile", "--target", str(self.site), str(wheel)]
        subprocess.run(command, check=True, env=_without_paths())

    def environment(self, **changes: str) -> dict[str, str]:
        """The variables of a user whose `bnb-ds` is that of the wheel."""
        found = launching.environment(PYTHONPATH=str(self.site), **changes)
        return {**found, "PATH": f"{self.site / 'bin'}{os.pathsep}{found['PATH']}"}

    def run(self, command: str, folder: Path) -> subprocess.CompletedProcess[str]:
        """Run a command line of bash in a folder."""
        return launching.run(["bash", "-c", command], directory=folder, env=self.environment())

    def fork_server(self, folder: Path) -> ForkServer:
        """A server that runs the programs of the wheel in a folder. Of the checkout it sees the tests alone."""
        tests = folder / "only_tests"
        tests.mkdir()
        (tests / "tests").symlink_to(launching.REPOSITORY / "tests")
        return ForkServer(folder, PYTHONPATH=f"{self.site}{os.pathsep}{tests}", PATH=self.environment()["PATH"])


def _without_paths() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
