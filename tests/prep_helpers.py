"""Runs `bnb-ds prep` on small corpora, in this process or in a separate one that can be killed."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from bnb_ds.common.arguments import CommandParser
from data_prep.cli import add_commands

REPOSITORY = Path(__file__).resolve().parents[1]

# As `bnb-ds`, but without importing the model, which would take too long in tests that start many processes.
_MAIN = """
import sys
from bnb_ds.cli import main
sys.exit(main())
"""


def parse(*arguments: str | Path) -> argparse.Namespace:
    """The arguments of `bnb-ds prep ARGUMENTS`."""
    parser = CommandParser(prog="bnb-ds")
    add_commands(parser.add_subparsers(required=True))
    return parser.parse_args(["prep", *map(str, arguments)])


def prep(*arguments: str | Path) -> int | None:
    """Run `bnb-ds prep ARGUMENTS` in this process."""
    args = parse(*arguments)
    return args.run(args)


def start(*arguments: str | Path, before: str = "") -> subprocess.Popen[str]:
    """Run `bnb-ds prep ARGUMENTS` in a separate process; ``before`` is code that it executes first."""
    command = [sys.executable, "-c", before + _MAIN, "prep", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=REPOSITORY, text=True, **pipes)


def content(directory: Path) -> dict[str, bytes]:
    """Every file below a directory."""
    files = [path for path in sorted(directory.rglob("*")) if path.is_file()]
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in files}


def write_corpus(directory: Path, texts: list[str], num_files: int = 7) -> Path:
    """The texts as .jsonl files of about equal size."""
    directory.mkdir(parents=True)
    for number in range(num_files):
        rows = [{"id": i, "text": texts[i]} for i in range(number, len(texts), num_files)]
        (directory / f"{number}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory
