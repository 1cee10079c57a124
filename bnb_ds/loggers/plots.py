"""Show logged curves: a table of first and last values, and a plot of several runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from bnb_ds.common.files import new_file
from bnb_ds.errors import ConfigError, DataError, how_to_install, nearest

Curves = dict[str, list[tuple[int, float]]]  # tag -> (step, value)


def table(runs: dict[str, Curves]) -> Iterator[str]:
    """Lines with the first and the last value of every curve. ``runs`` maps the name of a run to its curves."""
    for name, curves in runs.items():
        if len(runs) > 1:
            yield f"{name}:"
        for tag, values in curves.items():
            (first_step, first), (last_step, last) = values[0], values[-1]
            yield f"{tag:30} {first:.5g} at step {first_step} -> {last:.5g} at step {last_step}"


def plot(runs: dict[str, Curves], tags: Sequence[str], path: Path) -> None:
    """Write a PNG file with one panel for each tag and one line for each run.

    Raises:
        ConfigError: matplotlib is not installed.
        DataError: a run has no such tag, or the file exists or cannot be written.
    """
    for name, curves in runs.items():
        for tag in tags:
            if tag not in curves:
                raise DataError(f"--tags: run {name} has no {tag!r}: {nearest(tag, curves)}")
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError(f"--png needs matplotlib: {how_to_install('plot')}, or omit --png") from None
    figure = Figure(figsize=(5 * len(tags), 4), dpi=120, layout="constrained")
    for axes, tag in zip(figure.subplots(1, len(tags), squeeze=False)[0], tags, strict=True):
        for name, curves in runs.items():
            axes.plot(*zip(*curves[tag], strict=True), label=name, linewidth=1.2)
        axes.set_xlabel("step")
        axes.set_ylabel(tag)
        axes.legend()
    with new_file(path) as file:
        figure.savefig(file, format="png", metadata={"Software": None})
