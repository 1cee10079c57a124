"""Loggers by name: of this project, of an installed package, of a user's own module or file."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

from bnb_ds.config.sections import PretrainRecipe
from bnb_ds.errors import ConfigError
from bnb_ds.loggers.choice import find_loggers
from bnb_ds.loggers.logger import Logger, RunInfo
from bnb_ds.loggers.tensorboard import TensorBoardLogger
from bnb_ds.train.tracking import Tracker

CALLBACK = """
from __future__ import annotations
from dataclasses import dataclass, field
from bnb_ds.loggers import Logger, RunInfo

CALLS = []

@dataclass
class Notify(Logger):
    calls: list[str] = field(default_factory=lambda: CALLS)

    def start(self, run: RunInfo, step: int) -> None:
        self.calls.append(("start", run.name, run.project, len(run.id), step))

    def scalars(self, step, values):
        self.calls.append(("scalars", step, values))

    def text(self, step, tag, markdown):
        self.calls.append(("text", step, tag, markdown))

    def finish(self, outcome):
        self.calls.append(("finish", outcome))

class Breaks(Logger):
    def scalars(self, step, values):
        raise OSError("the server\\nis gone")

class NeverStarts(Logger):
    def start(self, run, step):
        raise RuntimeError("no password")
"""


@pytest.fixture
def callback(tmp_path):
    path = tmp_path / "my_notify.py"
    path.write_text(CALLBACK)
    yield path
    sys.modules.pop("my_notify", None)


def test_the_default_is_tensorboard():
    recipe = PretrainRecipe.model_validate({"output_dir": "x", "steps": 1, "data": {"shards": "y"}})
    assert find_loggers(recipe.tracking.loggers) == {"tensorboard": TensorBoardLogger}


def test_a_callback_of_a_file_hears_everything(callback, tmp_path, capsys):
    loggers = find_loggers([f"{callback}:Notify"])
    run = RunInfo(tmp_path / "out", "first try", "project")
    tracker = Tracker(tmp_path / "out" / "runs", start_step=0, total_steps=4, loggers=loggers, run=run)
    tracker.scalars(1, {"train/loss": 2.0, "train/skipped_spikes": 0, "train/mask_fraction": 0.0})
    tracker.scalars(2, {"train/loss": 1.5, "train/skipped_spikes": 1, "train/mask_fraction": 0.0})
    tracker.scalars(3, {"train/loss": 1.0, "train/skipped_spikes": 0, "train/mask_fraction": 0.0})
    tracker.evaluation(3, {"eval/loss": 1.25, "eval/loss_samples": 8, "eval/bleu": 50.0, "eval_mismatched/loss": 2.0})
    tracker.text(3, "eval/outputs", "| a |")
    tracker.go_back(2)
    tracker.close("stopped")
    assert sys.modules["my_notify"].CALLS == [
        ("start", "first try", "project", 16, 0),
        ("scalars", 1, {"train/loss": 2.0}),
        ("scalars", 2, {"train/loss": 1.5, "train/skipped_spikes": 1}),
        ("scalars", 3, {"train/loss": 1.0, "train/skipped_spikes": 0}),
        ("scalars", 3, {"eval/loss": 1.25, "eval/bleu": 50.0, "eval_mismatched/loss": 2.0}),
        ("text", 3, "eval/outputs", "| a |"),
        ("start", "first try", "project", 16, 2),
        ("finish", "stopped"),
    ]
    assert "step 3  evaluation  loss 1.25  bleu 50  mismatched: loss 2\n" in capsys.readouterr().out
    assert not (tmp_path / "out" / "runs").exists()  # TensorBoard was not asked for


def test_a_counter_that_counted_before_a_restart_is_told_again(callback, tmp_path):
    loggers = find_loggers([f"{callback}:Notify"])
    for start, values in ((0, {"train/skipped_spikes": 1}), (1, {"train/skipped_spikes": 0})):
        tracker = Tracker(tmp_path / "out" / "runs", start_step=start, total_steps=2, loggers=loggers)
        tracker.scalars(start + 1, values)
        tracker.close()
    calls = sys.modules["my_notify"].CALLS
    assert [call for call in calls if call[0] == "scalars"] == [
        ("scalars", 1, {"train/skipped_spikes": 1}),
        ("scalars", 2, {"train/skipped_spikes": 0}),
    ]


def test_all_launches_of_a_run_have_one_id(tmp_path):
    ids = []

    class Remember(Logger):
        def start(self, run, step):
            ids.append(run.id)

    for start in (0, 3, 0):
        Tracker(tmp_path / "runs", start_step=start, total_steps=4, loggers={"remember": Remember}).close()
    assert ids[0] == ids[1]
    assert ids[1] != ids[2], "another run began in the directory"


def test_a_logger_that_fails_does_not_end_the_run(callback, tmp_path, capsys):
    loggers = find_loggers([f"{callback}:Breaks", f"{callback}:Notify"])
    tracker = Tracker(tmp_path / "runs", start_step=0, total_steps=2, loggers=loggers)
    tracker.scalars(1, {"train/loss": 1.0})
    tracker.scalars(2, {"train/loss": 2.0})
    tracker.close()
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note")]
    left_out = "has failed and is left out until the next launch (the server is gone)"
    assert notes == [f"note         logger {callback}:Breaks {left_out}"]
    assert [call[1] for call in sys.modules["my_notify"].CALLS if call[0] == "scalars"] == [1, 2]


def test_a_logger_that_cannot_be_made_ends_the_launch(tmp_path):
    class Needy(Logger):
        def __init__(self, key):
            pass

    with pytest.raises(ConfigError, match=r"tracking.loggers: needy cannot start \(.*argument: 'key'\); mend its"):
        Tracker(tmp_path / "runs", start_step=0, total_steps=2, loggers={"needy": Needy})


def test_a_logger_that_cannot_start_ends_the_launch(callback, tmp_path):
    loggers = find_loggers([f"{callback}:NeverStarts"])
    with pytest.raises(ConfigError, match=r"my_notify\.py:NeverStarts cannot start \(no password\); mend its settings"):
        Tracker(tmp_path / "runs", start_step=0, total_steps=2, loggers=loggers)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["tensorbord"],
            r"there is no logger 'tensorbord': did you mean 'tensorboard'\? \(write a class of your own as",
        ),
        (["tensorboard", "tensorboard"], "tensorboard, tensorboard: name each logger once"),
        (["no_such_module:Logger"], r"no_such_module:Logger cannot be loaded \(No module named 'no_such_module'\)"),
        (["json:Nothing"], r"json:Nothing cannot be loaded \(module 'json' has no attribute 'Nothing'\)"),
        (["gone.py:Nothing"], r"gone.py:Nothing cannot be loaded \(.*No such file or directory: .*gone.py'\); mend or"),
        (["json:__name__"], "json:__name__ is no class of loggers, but 'json'; name a class"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_names_that_cannot_be_used(names, message):
    with pytest.raises(ConfigError, match=f"tracking.loggers: {message}"):
        find_loggers(names)


@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio"])
def test_a_logger_that_is_not_installed(name, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    with pytest.raises(ConfigError, match=rf'tracking.loggers: {name} is not installed: pip install "\.\[{name}\]" in'):
        find_loggers([name])


PLUGIN = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "bnb-pigeon"
version = "1.0"
[project.entry-points."bnb_ds.loggers"]
pigeon = "bnb_pigeon:Pigeon"
[tool.setuptools]
py-modules = ["bnb_pigeon"]
"""


@pytest.mark.slow
def test_an_installed_package_adds_a_logger(tmp_path, monkeypatch):
    """Built and installed by pip, and found by the entry point that it declares."""
    source, site = tmp_path / "source", tmp_path / "site"
    source.mkdir()
    (source / "pyproject.toml").write_text(PLUGIN)
    (source / "bnb_pigeon.py").write_text("from bnb_ds.loggers import Logger\nclass Pigeon(Logger):\n    pass\n")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    subprocess.run([*install, "--target", str(site), str(source)], check=True)
    with pytest.raises(ConfigError, match="there is no logger 'pigeon'"):
        find_loggers(["pigeon"])
    monkeypatch.syspath_prepend(str(site))
    (made,) = find_loggers(["pigeon"]).values()
    assert isinstance(made(), Logger)
    assert made.__module__ == "bnb_pigeon"
    with pytest.raises(ConfigError, match="there is no logger 'pigeo': did you mean 'pigeon'"):
        find_loggers(["pigeo"])
    sys.modules.pop("bnb_pigeon")
