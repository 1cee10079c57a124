"""``bnb-ds prep bench``: the whole job, parquet to finished output, beside ``datasets.map`` with ``save_to_disk``.

Every contender runs in a process of its own. They take turns several times, so that a busy machine slows all alike.
The clock starts after the imports, which cost every contender seconds, and stops when the output is finished. For
`prep` that means synced, hashed and with its manifest.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bnb_ds.common.markdown import markdown_table
from bnb_ds.errors import ConfigError, DataError
from data_prep.tokenise.engines import ENGINES

BASELINE = "datasets.map"
FLOOR = "tokenizer alone"
CONTENDERS = (BASELINE, FLOOR, *(f"prep {name}" for name in ENGINES))


@dataclass(frozen=True)
class Timing:
    """One run of one contender."""

    wall_seconds: float
    cpu_seconds: float  # of its process and its workers
    num_tokens: int
    peak_bytes: int  # resident memory of its largest process


def bench(
    inputs: Sequence[Path], tokenizer: Path, *, workers: Sequence[int], rounds: int, contenders: Sequence[str]
) -> Iterator[str]:
    """Run the contenders, each with every number of ``workers``, in turn, and yield the lines of a table in Markdown.

    Ratios are medians over the rounds: against the first contender with as many processes (or with its fewest), and
    against the same contender with the first number of processes, which is what more of them gain.

    Raises:
        ConfigError: there is no contender of that name, or ``rounds`` or a number of ``workers`` is below 1.
        DataError: a contender fails, or they disagree about the number of tokens.
    """
    unknown = [name for name in contenders if name not in CONTENDERS]
    if unknown:
        raise ConfigError(f"--contenders: no {unknown[0]!r}; choose from {', '.join(CONTENDERS)}")
    if rounds < 1:
        raise ConfigError(f"--rounds must be at least 1, got {rounds}")
    if min(workers) < 1:
        raise ConfigError(f"--workers must be at least 1, got {min(workers)}")
    timings: dict[tuple[str, int], list[Timing]] = {
        (name, count): [] for name in contenders for count in ([1] if name == FLOOR else workers)
    }
    for _ in range(rounds):
        for (name, count), found in timings.items():
            found.append(_run(name, inputs, tokenizer, count))
    counts = {timing.num_tokens for found in timings.values() for timing in found}
    if len(counts) != 1:
        raise DataError(f"the contenders made different numbers of tokens: {sorted(counts)}")
    yield f"{counts.pop():,} tokens, median of {rounds} rounds in turn"
    yield from markdown_table(_COLUMNS, _rows(timings, contenders[0])).splitlines()


_COLUMNS = (
    "",
    "processes",
    "wall s",
    "CPU s",
    "Mtok/CPU s",
    "times faster, wall",
    "times faster, CPU",
    "by processes, wall",
    "peak MiB",
)


def _rows(timings: dict[tuple[str, int], list[Timing]], first: str) -> Iterator[tuple[str, ...]]:
    alone = {name: found for (name, _), found in reversed(timings.items())}  # with the first number of processes
    for (name, count), found in timings.items():
        wall, cpu = _median(found, "wall_seconds"), _median(found, "cpu_seconds")
        rival = timings.get((first, count), alone[first])
        ratios = (
            _ratio(rival, found, "wall_seconds"),
            _ratio(rival, found, "cpu_seconds"),
            _ratio(alone[name], found, "wall_seconds"),
        )
        yield (
            name,
            str(count),
            f"{wall:.2f}",
            f"{cpu:.2f}",
            f"{found[0].num_tokens / cpu / 1e6:.1f}",
            *(f"{ratio:.2f}" for ratio in ratios),
            f"{_median(found, 'peak_bytes') / 2**20:,.0f}",
        )


def _ratio(slower: Sequence[Timing], faster: Sequence[Timing], field: str) -> float:
    """Median over the rounds."""
    return statistics.median(getattr(a, field) / getattr(b, field) for a, b in zip(slower, faster, strict=True))


def run_contender(name: str, arguments: dict) -> None:
    """In the process of a contender: do the job and print its :class:`Timing` as JSON."""
    job = {BASELINE: _datasets_map, FLOOR: _tokenizer_alone}.get(name, _prep)(name, arguments)
    start, cpu = time.perf_counter(), _cpu_seconds()
    num_tokens = job()
    wall, cpu = time.perf_counter() - start, _cpu_seconds() - cpu
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(json.dumps([wall, cpu, num_tokens, peak * 1024]))


def _run(name: str, inputs: Sequence[Path], tokenizer: Path, workers: int) -> Timing:
    with tempfile.TemporaryDirectory(prefix="bnb-ds-bench-") as output:
        arguments = {
            "inputs": [str(path) for path in inputs],
            "tokenizer": str(tokenizer),
            "output": output,
            "workers": workers,
        }
        code = f"from data_prep.tools.bench import run_contender; run_contender({name!r}, {arguments!r})"
        environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
        result = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
        )
        if result.returncode:
            raise DataError(f"{name} failed: {' '.join(result.stderr.split())[-300:]}")
        return Timing(*json.loads(result.stdout.splitlines()[-1]))


def _datasets_map(name: str, arguments: dict):
    import datasets

    from bnb_ds.data.tokenization import load_tokenizer

    tokenizer = load_tokenizer(arguments["tokenizer"])
    output = Path(arguments["output"])

    def encode(batch):
        # Its fastest form: ids only.
        return tokenizer(
            batch["text"], add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False
        )

    def job() -> int:
        rows = datasets.load_dataset(
            "parquet", data_files=_files(arguments), split="train", cache_dir=str(output / "cache")
        )
        workers = arguments["workers"]
        mapped = rows.map(
            encode, batched=True, remove_columns=rows.column_names, num_proc=workers if workers > 1 else None
        )
        mapped.save_to_disk(str(output / "saved"))
        import pyarrow.compute as pc

        return pc.sum(pc.list_value_length(mapped.data.column("input_ids"))).as_py()

    return job


def _tokenizer_alone(name: str, arguments: dict):
    import pyarrow.parquet as pq

    from bnb_ds.data.tokenization import load_tokenizer, plain_backend
    from data_prep.tokenise.engines import TokenizersEngine

    engine = TokenizersEngine(plain_backend(load_tokenizer(arguments["tokenizer"])))

    def job() -> int:
        count = 0
        for path in _files(arguments):
            for batch in pq.ParquetFile(path).iter_batches(256, columns=["text"]):
                count += len(engine(batch.column(0).to_pylist()).ids)
        return count

    return job


def _prep(name: str, arguments: dict):
    from bnb_ds.data.tokenization import load_tokenizer
    from bnb_ds.shards.manifest import SPLITS
    from data_prep.jobs.job import Options
    from data_prep.jobs.prepare import prepare
    from data_prep.sources.text import TextFormat, find_files
    from data_prep.sources.wikipedia import WikipediaSource

    engine = name.removeprefix("prep ")
    import pyarrow.parquet  # noqa: F401 -- imported before the clock starts, as for the others

    if engine == "nanotoken":
        __import__(engine)
    tokenizer = load_tokenizer(arguments["tokenizer"])

    def job() -> int:
        source = WikipediaSource(find_files(arguments["inputs"]), TextFormat(), {"command": "prep bench"})
        options = Options(engine=engine, workers=arguments["workers"])
        manifest = prepare(source, Path(arguments["output"]) / "shards", tokenizer, options)
        return sum(manifest.totals.tokens[split] for split in SPLITS)

    return job


def _files(arguments: dict) -> list[str]:
    from data_prep.sources.text import find_files

    return [str(file.path) for file in find_files(arguments["inputs"])]


def _cpu_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _median(timings: Sequence[Timing], field: str) -> float:
    return statistics.median(getattr(timing, field) for timing in timings)
