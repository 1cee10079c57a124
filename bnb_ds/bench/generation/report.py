"""The tables and charts of ``bnb-ds bench generate``."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bnb_ds.common.files import replaced_file
from bnb_ds.common.markdown import markdown_table
from bnb_ds.errors import ConfigError, how_to_install

Result = dict[str, Any]


def reference_table(results: list[Result]) -> str:
    """A Markdown table of results of `bnb_ds.bench.generation.reference_style.against_reference`."""
    names = (
        "data",
        "source tokens, mean",
        "slots, mean (policy: ratio, min, max)",
        "batch",
        "sentences/s: ours / reference-style",
        "faster, wall",
        "faster, CPU s",
        "identical at equal slots",
        "as in fp32",
    )
    return markdown_table(names, map(_reference_row, results))


def _reference_row(result: Result) -> tuple[str, ...]:
    count, timings = result["num_sources"], result["timings"]
    rates = [count / timings[way]["p50_seconds"] for way in ("ours", "reference-style")]
    policy = ", ".join(str(value) for value in result["policy"].values())
    return (
        result["data"],
        f"{result['source_tokens']['mean']:.0f}",
        f"{result['decoder_slots']['mean']:.0f} ({policy})",
        str(result["batch_size"]),
        " / ".join(f"{rate:.3g}" for rate in rates),
        f"{result['speedup_wall']:.1f}",
        f"{result['speedup_cpu']:.1f}",
        f"{result['identical_at_equal_slots']} of {count}",
        f"{result['identical_to_fp32_torch']} of {count}",
    )


def latency_tables(results: list[Result]) -> str:
    """Two Markdown tables of results of `bnb_ds.bench.generation.latency`: the workloads, and all cells."""
    workloads = {result["workload"]: result for result in results}
    what = (
        "workload",
        "sources",
        "source tokens, mean (max)",
        "output tokens with the end, mean (max)",
        "BnB's slots, mean (max)",
        "policy",
        "references that fit",
    )
    names = (
        "workload",
        "batch",
        "system",
        "p50 s a batch",
        "p95 s",
        "ms a sentence",
        "sentences/s",
        "whole set, s",
        "BnB greedy faster, wall",
        "CPU s",
    )
    first = markdown_table(what, map(_workload_row, workloads.values()))
    return first + "\n\n" + markdown_table(names, (row for result in results for row in _cell_rows(result)))


def _workload_row(result: Result) -> tuple[str, ...]:
    spans = [
        f"{result[name]['mean']:.1f} ({result[name]['max']})"
        for name in ("source_tokens", "output_tokens", "decoder_slots")
    ]
    policy = ", ".join(f"{name.removeprefix('decoder_length_')} {value}" for name, value in result["policy"].items())
    fit = result["references_that_fit"]
    count = result["num_sources"]
    return (result["workload"], str(count), *spans, policy, "-" if fit is None else f"{fit} of {count}")


def _cell_rows(result: Result) -> Iterator[tuple[str, ...]]:
    for way, cell in result["cells"].items():
        start = (result["workload"], str(result["batch_size"]), way)
        if "skipped" in cell:
            yield (*start, f"skipped: {cell['skipped']}", *["-"] * 6)
            continue
        numbers = (cell["p50_seconds"], cell["p95_seconds"], 1e3 * cell["seconds_per_sentence"])
        yield (
            *start,
            *(f"{number:.3g}" for number in numbers),
            *(_optional(cell, name, "{:.3g}") for name in ("sentences_per_second", "whole_set_seconds")),
            *(_optional(cell, name, "{:.2f}") for name in ("bnb_faster_wall", "bnb_faster_cpu")),
        )


def _optional(cell: dict[str, Any], name: str, form: str) -> str:
    return form.format(cell[name]) if name in cell else "-"


def require_matplotlib() -> Any:
    """Return ``matplotlib.pyplot``, set up to draw without a window.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        matplotlib = importlib.import_module("matplotlib")
    except ImportError:
        raise ConfigError(f"--png needs matplotlib: {how_to_install('plot')}, or leave it out") from None
    matplotlib.use("Agg")
    return importlib.import_module("matplotlib.pyplot")


def reference_bars(results: list[Result]) -> dict[str, dict[str, float]]:
    """Sentences per second of each way, for `draw`."""
    return {
        f"{result['data']}\nbatch {result['batch_size']}": {
            way: result["num_sources"] / timing["p50_seconds"] for way, timing in result["timings"].items()
        }
        for result in results
    }


def latency_bars(results: list[Result]) -> dict[str, dict[str, float]]:
    """The same for latencies; skipped cells have no bar."""
    return {
        f"{result['workload']}\nbatch {result['batch_size']}": {
            way: cell["sentences_per_second"] for way, cell in result["cells"].items() if "skipped" not in cell
        }
        for result in results
    }


def draw(path: Path, bars: dict[str, dict[str, float]], title: str) -> None:
    """Draw sentences per second on a logarithmic scale: a group of bars per measurement, a colour per way."""
    plot = require_matplotlib()
    ways = list(dict.fromkeys(way for group in bars.values() for way in group))
    figure, axes = plot.subplots(figsize=(max(8, 0.25 * len(ways) * len(bars)), 5), layout="constrained")
    for number, way in enumerate(ways):
        places = [place + 0.8 * number / len(ways) for place, group in enumerate(bars.values()) if way in group]
        heights = [group[way] for group in bars.values() if way in group]
        axes.bar(places, heights, width=0.8 / len(ways), label=way, align="edge")
    axes.set_xticks([place + 0.4 for place in range(len(bars))], list(bars))
    axes.set_ylabel("sentences per second")
    axes.set_title(title)
    if ways:  # a logarithmic axis needs at least one bar
        axes.set_yscale("log")
        figure.legend(fontsize="small", ncols=5, loc="outside lower center")
    with replaced_file(path) as file:
        figure.savefig(file, dpi=120, format=path.suffix[1:] or "png")
    plot.close(figure)
