"""`bnb-ds curves`: table, plot, and wrong arguments."""

from __future__ import annotations

import sys

import pytest

from bnb_ds.cli import main
from bnb_ds.train.tracking import Tracker


@pytest.fixture
def runs(tmp_path):
    """Two runs with different losses."""
    for name, slope in (("ours", 1.0), ("theirs", 0.5)):
        tracker = Tracker(tmp_path / name / "runs", start_step=0, total_steps=3)
        for step in range(1, 4):
            tracker.scalars(step, {"train/loss": 10 - slope * step, "eval/loss": 9 - slope * step})
        tracker.close()
    return [str(tmp_path / "ours"), str(tmp_path / "theirs")]


def test_first_and_last_values(runs, capsys):
    capsys.readouterr()
    assert main(["curves", *runs]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.endswith(":")] == ["ours:", "theirs:"]
    assert "train/loss                     9.5 at step 1 -> 8.5 at step 3" in lines


@pytest.mark.slow
def test_a_picture_of_both(runs, tmp_path):
    image = pytest.importorskip("matplotlib.image")
    assert main(["curves", *runs, "--png", str(tmp_path / "both.png")]) == 0
    pixels = image.imread(tmp_path / "both.png")[..., :3].reshape(-1, 3)
    assert {(31, 119, 180), (255, 127, 14)} <= {tuple(pixel) for pixel in (255 * pixels).round().astype(int).tolist()}


def test_what_is_refused(runs, tmp_path, capsys):
    png = str(tmp_path / "x.png")
    for arguments, message in (
        ([*runs, "--png", png, "--tags", "train/los"], "run ours has no 'train/los': did you mean 'train/loss'"),
        ([runs[0], runs[0]], "two of the runs have the same name"),
        ([str(tmp_path)], "nothing was logged here"),
    ):
        assert main(["curves", *arguments]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "x.png").exists()


def test_a_picture_needs_matplotlib(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["curves", *runs, "--png", str(tmp_path / "x.png")]) == 2
    said = capsys.readouterr().err
    assert 'error: --png needs matplotlib: pip install ".[plot]" in the checkout of bnb_ds, or omit --png' in said
    assert not (tmp_path / "x.png").exists()
