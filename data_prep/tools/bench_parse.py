"""``bnb-ds prep bench --parse``: reading PubMed XML into documents beside ``pubmed_parser``, on the same files."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from bnb_ds.errors import ConfigError
from data_prep.sources.pubmed import read_xml
from data_prep.sources.units import find_files

_LEAST_SECONDS = 0.2  # of one timing: a small file is read again until then, for the clock is no finer than 10 ms


def bench_parse(inputs: Sequence[Path], rounds: int) -> Iterator[str]:
    """Read every file in turn with both, ``rounds`` times, and yield the lines of a table in Markdown.

    What is timed are CPU seconds of this process from opening the file to its last record, none of which is kept.

    Raises:
        ConfigError: ``pubmed_parser`` is not installed, or ``rounds`` is below 1.
        DataError: a file is missing or no PubMed XML.
    """
    if rounds < 1:
        raise ConfigError(f"--rounds must be at least 1, got {rounds}")
    try:
        from pubmed_parser import parse_medline_xml
    except ImportError:
        raise ConfigError("--parse: pubmed_parser is not installed; `pip install pubmed_parser` to compare") from None
    yield f"CPU seconds, median of {rounds} rounds in turn"
    yield "| file | records | MB of XML/CPU s | ours, CPU s | pubmed_parser, CPU s | times faster |"
    yield "|---|---|---|---|---|---|"
    for file in find_files(inputs, (".xml",)):
        readers = (lambda file=file: read_xml(file), lambda file=file: parse_medline_xml(str(file.path)))
        num_records = sum(1 for _ in readers[0]())  # also what only the first reading costs
        seconds = [[_cpu_seconds(reader) for reader in readers] for _ in range(rounds)]
        ours, theirs = (statistics.median(column) for column in zip(*seconds, strict=True))
        ratio = statistics.median(other / our for our, other in seconds)
        speed = _num_bytes(file.path) / ours / 1e6
        yield f"| {file.name} | {num_records:,} | {speed:.0f} | {ours:.4f} | {theirs:.4f} | {ratio:.1f} |"


def _cpu_seconds(read: Callable[[], Iterable[object]]) -> float:
    """Of one reading."""
    num_readings, start = 0, time.process_time()
    while (passed := time.process_time() - start) < _LEAST_SECONDS or not num_readings:
        for _ in read():
            pass
        num_readings += 1
    return passed / num_readings


def _num_bytes(path: Path) -> int:
    from data_prep.sources.opening import open_input

    with open_input(path) as stream:
        return sum(map(len, iter(lambda: stream.read(1 << 20), b"")))
