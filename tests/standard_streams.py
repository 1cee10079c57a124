"""Runs `bnb-ds` in this process with a real standard output: a closed one, a full disk, a pipe, another encoding."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bnb_ds.cli import main


@contextmanager
def standard_output(target: int | None) -> Iterator[None]:
    """Standard output as Python opens it in a Latin-1 locale, on the open file ``target``; None: it is closed."""
    saved, before = os.dup(1), (sys.stdout, sys.__stdout__)
    sys.stdout.flush()
    if target is None:
        os.close(1)
        sys.stdout = sys.__stdout__ = None
    else:
        os.dup2(target, 1)
        sys.stdout = sys.__stdout__ = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), encoding="latin-1")
    try:
        yield
    finally:
        sys.stdout, sys.__stdout__ = before
        os.dup2(saved, 1)
        os.close(saved)


def run_to_file(arguments: list[str], path: Path) -> tuple[int, bytes]:
    """Exit code and standard output of a command."""
    with open(path, "wb") as file, standard_output(file.fileno()):
        code = main(arguments)
    return code, path.read_bytes()


def run_closed(arguments: list[str]) -> int:
    """Exit code of a command without standard output."""
    with standard_output(None):
        return main(arguments)


def run_full(arguments: list[str]) -> int:
    """Exit code of a command whose standard output is a full disk."""
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with open("/dev/full", "wb") as file, standard_output(file.fileno()):
        return main(arguments)


def run_unread(arguments: list[str]) -> int:
    """Exit code of a command whose standard output nobody reads on."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        with standard_output(writing):
            return main(arguments)
    finally:
        os.close(writing)
