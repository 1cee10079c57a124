"""The wheel is complete: it holds every module of the checkout, and each can be imported."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile

import pytest

from tests.launching import REPOSITORY

PACKAGES = ("bnb_ds", "data_prep")

# This runs outside the checkout. The unpacked wheel is first on the path.
_IMPORT_ALL = """
import importlib, sys
wheel, *modules = sys.argv[1:]
sys.path.insert(0, wheel)
for name in modules:
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name.split(".")[0] in ("bnb_ds", "data_prep"):
            raise
        print("without", error.name, name)  # an optional package
        continue
    assert module.__file__.startswith(wheel), module.__file__
"""


def modules_of_the_checkout() -> list[str]:
    paths = [path.relative_to(REPOSITORY) for package in PACKAGES for path in (REPOSITORY / package).rglob("*.py")]
    return sorted(".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in paths)


@pytest.mark.slow
def test_every_module_is_in_the_wheel(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    for package in PACKAGES:
        shutil.copytree(REPOSITORY / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", str(tmp_path), str(source)], check=True)
    (wheel,) = tmp_path.glob("bnb_ds-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "unpacked")
    assert (tmp_path / "unpacked" / "bnb_ds" / "py.typed").is_file()
    pages = sorted(path.name for path in (REPOSITORY / "bnb_ds" / "serve" / "static").iterdir())
    assert sorted(path.name for path in (tmp_path / "unpacked" / "bnb_ds" / "serve" / "static").iterdir()) == pages
    modules = modules_of_the_checkout()
    result = subprocess.run(
        [sys.executable, "-c", _IMPORT_ALL, str(tmp_path / "unpacked"), *modules],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "bnb_ds.ctc.loss" in modules
    left_out = [line.split()[-1] for line in result.stdout.splitlines() if line.startswith("without ")]
    trackers = {f"bnb_ds.loggers.{name}" for name in ("mlflow", "trackio", "wandb")}
    assert set(left_out) <= {"bnb_ds.ctc.triton", "bnb_ds.decoding.ngram_lm", *trackers}, result.stdout
