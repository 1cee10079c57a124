"""The wheel is complete: it holds every module of the checkout, each can be imported, and the files beside them."""

from __future__ import annotations

import email
import re
import subprocess
import sys

import pytest

from tests.installing import PACKAGES
from tests.launching import REPOSITORY

# This runs outside the checkout. The installed wheel is first on the path.
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
def test_every_module_is_in_the_wheel(installed, tmp_path):
    assert (installed.site / "bnb_ds" / "py.typed").is_file()
    modules = modules_of_the_checkout()
    result = subprocess.run(
        [sys.executable, "-c", _IMPORT_ALL, str(installed.site), *modules],
        cwd=tmp_path,
        env={**installed.environment(), "PYTHONPATH": str(installed.site)},  # with MLflow
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "bnb_ds.ctc.loss" in modules
    left_out = [line.split()[-1] for line in result.stdout.splitlines() if line.startswith("without ")]
    trackers = {f"bnb_ds.loggers.{name}" for name in ("mlflow", "trackio", "wandb")}
    kernels = {"bnb_ds.ctc.triton", "bnb_ds.dag.triton"}
    assert set(left_out) <= {*kernels, "bnb_ds.decoding.ngram_lm", *trackers}, result.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("folder", "pattern", "place"),
    [
        ("bnb_ds/recurrences", "*.cu", "bnb_ds/recurrences"),
        ("bnb_ds/serve/static", "*.html", "bnb_ds/serve/static"),
        ("runs/recipes", "**/*.yaml", "bnb_ds/shipped/runs/recipes"),
        ("runs/launch", "*.sh", "bnb_ds/shipped/runs/launch"),
        ("runs/slurm", "*.sbatch", "bnb_ds/shipped/runs/slurm"),
        ("runs", "*.py", "bnb_ds/shipped/runs"),
        ("ds_configs", "*.json", "bnb_ds/shipped/ds_configs"),
    ],
)
def test_files_beside_the_code_are_in_the_wheel(installed, folder, pattern, place):
    ours, theirs = (
        {path.relative_to(root).as_posix(): path.read_bytes() for path in root.glob(pattern)}
        for root in (REPOSITORY / folder, installed.site / place)
    )
    assert ours
    assert ours == theirs


@pytest.mark.slow
def test_what_a_package_index_would_show(installed):
    (info,) = installed.site.glob("bnb_ds-*.dist-info")
    said = email.message_from_string((info / "METADATA").read_text(encoding="utf-8"))
    assert said["Description-Content-Type"] == "text/markdown"
    assert "Typing :: Typed" in said.get_all("Classifier")
    assert any(url.startswith("Paper, https://doi.org/") for url in said.get_all("Project-URL"))
    text = said.get_payload()
    assert text.startswith("# bnb_ds\n\nbnb_ds trains and runs")
    assert "![" not in text
    assert "<!--" not in text
    assert re.findall(r"\]\((?!https?:)", text) == []
    assert "Read on" in text


@pytest.mark.slow
def test_without_a_checkout_an_extra_is_named_by_its_packages(installed, tmp_path):
    code = "from bnb_ds.errors import how_to_install; print(how_to_install('serve'))"
    assert installed.run(f'python -c "{code}"', tmp_path).stdout == (
        'pip install "fastapi>=0.115" "uvicorn>=0.30" "prometheus-client>=0.20"\n'
    )
