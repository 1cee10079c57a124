"""The parts of the check, each a process of its own: ``python -m bnb_ds.bench.gpu_check.parts PART --out DIR``.

``list`` prints the parts and their limits in seconds. ``table`` prints the table of all figures and writes it as JSON;
its exit code is 1 if a result was wrong or a part did not end.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
import traceback
from dataclasses import asdict
from pathlib import Path

from bnb_ds.bench.gpu_check.figures import FAILED, Figure, Figures, read_figures, table
from bnb_ds.common.files import write_atomic

#: part -> the functions that it runs one after the other, and its limit in seconds
PARTS: dict[str, tuple[tuple[str, ...], int]] = {
    "environment": (("speed:environment", "speed:device_floors"), 50),
    "head_accuracy": (("accuracy:head",), 60),
    "attention_accuracy": (("accuracy:attention",), 40),
    "model_accuracy": (("accuracy:models",), 50),
    "generation_accuracy": (("accuracy:generation", "accuracy:cuda_graphs"), 60),
    "waits": (("host_waits:waits", "host_waits:pinned"), 50),
    "recurrences": (("launches:trials", "launches:launches", "launches:speed"), 60),
    "head_speed": (("speed:head", "speed:head_beside_torch"), 70),
    "attention_speed": (("speed:attention",), 45),
    "training_step": (("speed:training_step",), 60),
    "generation_speed": (("speed:generation",), 60),
    "kernels": (("speed:adding_rows", "host_waits:compilations"), 45),
}
#: what each part notes last
_END = "seconds of the part"
_WHY_NOT = "its time was up, or its lines above say why"


def main(arguments: list[str] | None = None) -> int:
    """Run one part, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=[*PARTS, "list", "table"])
    parser.add_argument("expected", nargs="*", help="with `table`: the parts that should have run")
    parser.add_argument("--out", type=Path, default=Path("gpu_check_out"))
    parser.add_argument("--dry", action="store_true", help="tiny sizes on the CPU")
    args = parser.parse_args(arguments)
    lines = args.out / "figures.jsonl"
    if args.part == "list":
        print("\n".join(f"{name} {limit}" for name, (_, limit) in PARTS.items()))
        return 0
    if args.part == "table":
        return _table(lines, args.out / "report.json", args.expected)
    args.out.mkdir(parents=True, exist_ok=True)
    # Imported here: it takes seconds, and lists and tables do not need it.
    from bnb_ds.bench.gpu_check.cases import Scale

    scale = Scale(args.dry)
    figures, begin = Figures(args.part, lines, scale.device), time.perf_counter()
    for name in PARTS[args.part][0]:
        module, _, function = name.partition(":")
        try:
            run = getattr(importlib.import_module(f"bnb_ds.bench.gpu_check.{module}"), function)
            print(f"== {args.part}: {run.__doc__}", flush=True)
            run(figures, scale)
        except Exception as error:  # one part must not keep the others from running
            traceback.print_exc()
            figures.put(function, f"{type(error).__name__}: {error}"[:200], FAILED)
    figures.put(_END, time.perf_counter() - begin)
    return 0


def _table(lines: Path, report: Path, expected: list[str]) -> int:
    figures = read_figures(lines)
    ended = {figure.part for figure in figures if figure.name == _END}
    figures += [Figure(part, "the part", "did not end", FAILED, _WHY_NOT) for part in expected if part not in ended]
    wrong = sum(figure.verdict == FAILED for figure in figures)
    entries = {"failed": wrong, "figures": [asdict(figure) for figure in figures]}
    write_atomic(report, json.dumps(entries, indent=1) + "\n")
    print(table(figures))
    print(f"\n{len(figures)} figures, {wrong} failed; also in {report}")
    return 1 if wrong or not figures else 0


if __name__ == "__main__":
    sys.exit(main())
