"""Tables and the picture of ``bnb-ds bench frontier``."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bnb_ds.bench.flags import versions
from bnb_ds.bench.frontier.measuring import Comparison, Outcome, Setting
from bnb_ds.common.files import disk_errors, replaced_file, write_atomic
from bnb_ds.common.markdown import markdown_table
from bnb_ds.errors import ConfigError, DataError, how_to_install

#: a system is on the line if no other is at least as good and as fast, and better in one of the two
Point = tuple[float, float]  # sentences a second, quality
Box = tuple[float, float, float]  # of a name: left and right end, and lower edge, in points

PICTURES = (".png", ".svg")
#: what `write` writes
JSON_FILE, TABLE_FILE = "frontier.json", "frontier.md"
_MARKS = "os^vDP*Xhd<>"
# of names beside points, at 8 points
_LETTER_POINTS, _LINE_POINTS = 4.5, 9.0


def on_the_line(points: dict[str, Point]) -> list[str]:
    """The names of the points that no other point beats, from slow to fast."""

    def beaten(point: Point) -> bool:
        return any(
            other != point and all(a >= b for a, b in zip(other, point, strict=True)) for other in points.values()
        )

    return sorted((name for name, point in points.items() if not beaten(point)), key=lambda name: points[name])


def points(comparison: Comparison, batch_size: int, score: str) -> dict[str, Point]:
    """System -> sentences a second and mean score; systems whose score is not a number are left out."""
    found = {}
    for outcome in comparison.outcomes:
        quality = outcome.mean_sd(score)
        if quality is not None:
            found[outcome.contestant.name] = comparison.num_timed / outcome.seconds(batch_size), quality[0]
    return found


def table(comparison: Comparison, scores: Sequence[str]) -> str:
    """A Markdown table: a line for each system, with scores, sentences a second, and where it is on the line."""
    sizes = list(comparison.outcomes[0].speeds)
    lines = {size: on_the_line(points(comparison, size, scores[0])) for size in sizes}
    names = ["system", "kind", "decoding", "parameters", "models", *scores]
    names += [f"sentences/s, batch {size}" for size in sizes] + ([f"ms a sentence, batch {sizes[0]}"] if sizes else [])
    names += ["on the Pareto line at batch"] if sizes else []
    rows = []
    for outcome in comparison.outcomes:
        name = outcome.contestant.name
        seconds = [outcome.seconds(size) for size in sizes]
        row = [
            name,
            outcome.kind,
            ", ".join(f"{key} {value}" for key, value in outcome.decoding.items()) or "greedy",
            f"{outcome.num_parameters / 1e6:.1f} M",
            str(len(outcome.contestant.models)),
            *(shown_score(outcome, score) for score in scores),
            *(f"{comparison.num_timed / taken:.4g}" for taken in seconds),
        ]
        if sizes:
            row.append(f"{1e3 * seconds[0] / comparison.num_timed:.3g}")
            row.append(", ".join(str(size) for size in sizes if name in lines[size]) or "-")
        rows.append(row)
    return markdown_table(names, rows)


def shown_score(outcome: Outcome, score: str) -> str:
    """``27.13 ± 0.21``; without a deviation for one model."""
    found = outcome.mean_sd(score)
    if found is None:
        return "no number"
    mean, deviation = found
    return f"{mean:.2f}" if deviation is None else f"{mean:.2f} ± {deviation:.2f}"


def write(directory: Path, comparison: Comparison, scores: Sequence[str], setting: Setting) -> str:
    """Write `JSON_FILE` and `TABLE_FILE`; returns the table with what it depends on."""
    tokenizers = {outcome.tokenizer for outcome in comparison.outcomes}
    note = "All systems read the same tokens."
    if len(tokenizers) > 1:
        note = f"The systems have {len(tokenizers)} different tokenizers, so they read different tokens."
    text = f"{about(comparison, setting)}\n\n{table(comparison, scores)}\n\n{note}\n"
    figures = {
        "task": comparison.task,
        "split": comparison.split,
        "rows": comparison.num_rows,
        "timed_sentences": comparison.num_timed,
        "rounds": setting.rounds,
        "dtype": setting.dtype,
        "device": setting.hardware,
        **versions(),
        "systems": _systems(comparison, scores),
    }
    write_atomic(directory / TABLE_FILE, text)
    write_atomic(directory / JSON_FILE, json.dumps(figures, indent=1, allow_nan=False) + "\n")
    return text


def about(comparison: Comparison, setting: Setting) -> str:
    """One line: the data, and what speed was measured on."""
    speed = f"; speed of {comparison.num_timed:,} sentences, {setting.hardware}, {setting.dtype}"
    return f"{comparison.task}, {comparison.split}, {comparison.num_rows:,} rows{speed if setting.rounds else ''}"


def _systems(comparison: Comparison, scores: Sequence[str]) -> list[dict[str, Any]]:
    """The figures of each system."""
    found = []
    for outcome in comparison.outcomes:
        name, contestant = outcome.contestant.name, outcome.contestant
        speed = {}
        for size, rounds in outcome.speeds.items():
            seconds = outcome.seconds(size)
            speed[str(size)] = {
                "sentences_per_second": comparison.num_timed / seconds,
                "milliseconds_per_sentence": 1e3 * seconds / comparison.num_timed,
                "whole_set_seconds": seconds,
                "wall_and_cpu_seconds_of_rounds": rounds,
                "on_the_pareto_line": name in on_the_line(points(comparison, size, scores[0])),
            }
        found.append(
            {
                "system": name,
                "kind": outcome.kind,
                "models": [str(model) for model in contestant.models],
                "decoding": outcome.decoding,
                "parameters": outcome.num_parameters,
                "tokenizer": outcome.tokenizer,
                "scores": outcome.scores,
                "speed": speed,
            }
        )
    return found


def require_matplotlib() -> None:
    """Raise ConfigError if matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ConfigError(f"--picture needs matplotlib: {how_to_install('plot')}, or leave it out") from None


def draw(path: Path, comparison: Comparison, score: str, title: str) -> None:
    """Draw quality against speed: a panel for the smallest and one for the largest batch size.

    Args:
        path: PNG or SVG, by its suffix.
        comparison: with speeds.
        score: on the vertical axis.
        title: above the panels.

    Raises:
        DataError: the score is a number of no system.
    """
    import matplotlib
    from matplotlib.figure import Figure

    sizes = sorted(comparison.outcomes[0].speeds)
    if not points(comparison, sizes[0], score):
        raise DataError(f"--picture: {score} is a number of no system; leave it out, or give another --score")
    sizes = sizes if len(sizes) < 2 else [sizes[0], sizes[-1]]
    figure = Figure(figsize=(6.5 * len(sizes), 5.5), dpi=120, layout="constrained")
    figure.suptitle(title)
    for axes, size in zip(figure.subplots(1, len(sizes), squeeze=False, sharey=True)[0], sizes, strict=True):
        _panel(axes, comparison, size, score)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    is_svg = path.suffix == ".svg"
    with matplotlib.rc_context({"svg.hashsalt": "frontier"}), replaced_file(path) as file:
        figure.savefig(file, format=path.suffix[1:], metadata={"Date" if is_svg else "Software": None})


def _panel(axes: Any, comparison: Comparison, batch_size: int, score: str) -> None:
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

    places = points(comparison, batch_size, score)
    line = on_the_line(places)
    axes.set_xscale("log")
    speeds = [speed for speed, _ in places.values()]
    # Room for names at the right; fixed limits also serve a single speed.
    axes.set_xlim(min(speeds) / 1.3, max(speeds) * (max(speeds) / min(speeds)) ** 0.25 * 1.5)
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.step(*zip(*(places[name] for name in line), strict=True), where="pre", color="0.6", linewidth=1.2, zorder=1)
    kinds = list(dict.fromkeys(outcome.kind for outcome in comparison.outcomes))
    marks = dict(zip(kinds, itertools.cycle(_MARKS)))
    for outcome in comparison.outcomes:
        name = outcome.contestant.name
        if name in places:
            _, deviation = outcome.mean_sd(score) or (0.0, None)
            colour = f"C{kinds.index(outcome.kind) % 10}"
            axes.errorbar(*places[name], yerr=deviation, fmt=marks[outcome.kind], color=colour, capsize=2, markersize=6)
    axes.set_xlabel(f"sentences a second, batch {batch_size}")
    axes.set_ylabel(score)
    axes.margins(y=0.08)
    _label(axes, places)


def _label(axes: Any, places: dict[str, Point]) -> None:
    """Write names beside their points, each raised until it covers no name below it.

    The side is the one that is in the frame; then the one where it is raised less; then the right one.
    """
    axes.figure.draw_without_rendering()
    in_points = 72 / axes.figure.dpi
    frame = axes.get_window_extent()
    begin, end = frame.x0 * in_points, frame.x1 * in_points
    placed: list[Box] = []
    for name, point in sorted(places.items(), key=lambda item: item[1][1]):
        x, height = axes.transData.transform(point) * in_points
        width = _LETTER_POINTS * (len(name) + 2)
        right_of, left_of = (_raised((left, left + width, height), placed) for left in (x, x - width))
        box = min(right_of, left_of, key=lambda box: (box[0] < begin or box[1] > end, box[2]))
        placed.append(box)
        is_left, lower = box is left_of, box[2]
        axes.annotate(
            name,
            point,
            xytext=(-7 if is_left else 7, lower - height - 3),
            textcoords="offset points",
            ha="right" if is_left else "left",
            fontsize=8,
            arrowprops={"arrowstyle": "-", "color": "0.8", "linewidth": 0.6} if lower > height else None,
        )


def _raised(box: Box, placed: list[Box]) -> Box:
    """The box, as far up as it takes to cover none of those that are placed."""
    left, right, lower = box
    for other_left, other_right, other_lower in sorted(placed, key=lambda other: other[2]):
        if left < other_right and other_left < right and abs(lower - other_lower) < _LINE_POINTS:
            lower = other_lower + _LINE_POINTS
    return left, right, lower
