"""``bnb-ds bench loader``: measure the loader against Hugging Face's collator, and the start on a large corpus.

Throughput is in sequences of 512 tokens per CPU second. CPU seconds count all threads of the process.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import BertConfig, DataCollatorForLanguageModeling

from bnb_ds.bench.flags import add_json, add_repeats, refuse_missing_parent, versions, write
from bnb_ds.bench.measure import interleaved_seconds
from bnb_ds.bench.synthetic import tokenizer, wikipedia_lengths, write_shards
from bnb_ds.common.arguments import describe, positive
from bnb_ds.common.children import ctrl_c_held_back
from bnb_ds.common.markdown import markdown_table
from bnb_ds.data.corruption import Corruption
from bnb_ds.data.loader import StepLoader
from bnb_ds.data.samples import PretrainSamples
from bnb_ds.data.sequences import Building
from bnb_ds.data.subwords.rules import piece_rules
from bnb_ds.errors import ConfigError
from bnb_ds.model.configuration import BnbConfig
from bnb_ds.model.target_rules import BnbTargetRules
from bnb_ds.shards.reader import TokenShards

MAX_LENGTH, MICRO_BATCH, ACCUMULATION = 512, 64, 16
STEP_TOKENS = MAX_LENGTH * MICRO_BATCH * ACCUMULATION
_DOCUMENTS = 20_000

#: name -> sample building, objectives, whole-word masking, and whether documents have lengths as in Wikipedia
OURS: dict[str, tuple[Building, dict[str, float], bool, bool]] = {
    "ae": ("truncate", {"ae": 1}, False, False),
    "mlm": ("truncate", {"mlm": 1}, False, False),
    "mlm, whole words": ("truncate", {"mlm": 1}, True, False),
    "plm": ("truncate", {"plm": 1}, False, False),
    "mlm+plm": ("truncate", {"mlm+plm": 1}, False, False),
    "clm": ("truncate", {"clm": 1}, False, False),
    "all five mixed": ("truncate", {"ae": 1, "mlm": 1, "plm": 1, "mlm+plm": 1, "clm": 1}, False, False),
    "mlm+plm, Wikipedia's lengths": ("truncate", {"mlm+plm": 1}, False, True),
    "mlm+plm, the same packed": ("pack", {"mlm+plm": 1}, False, True),
}

#: name -> tensor type of Hugging Face's collator, and whether it gets masks: the usual way, and its fastest way
COLLATORS = {"collator, mlm": ("pt", False), "collator, mlm, masks given, NumPy": ("np", True)}


def measure_throughput(directory: Path, repeats: int) -> dict[str, float]:
    """Name -> sequences of 512 tokens per CPU second.

    Our loader draws the order, deals samples to ranks, reads, corrupts and makes tensors. The collator gets rows that
    are already read.
    """
    even = write_shards(directory / "even", np.full(_DOCUMENTS, MAX_LENGTH), with_tokens=True)
    wikipedia = write_shards(directory / "wikipedia", wikipedia_lengths(_DOCUMENTS), with_tokens=True)
    ways: dict[str, Callable[[], Any]] = {}
    tokens: dict[str, int] = {}
    for name, (building, mixture, whole_word, has_lengths) in OURS.items():
        shards = TokenShards(wikipedia if has_lengths else even)
        loader = _loader(make_samples(shards, building, mixture, whole_word))
        ways[name] = lambda loader=loader: loader.step(random.randrange(10**9))
        tokens[name] = sum(batch.labels.numel() for batch in loader.step(0))
        if mixture.keys() == {"clm"}:
            tokens[name] = STEP_TOKENS  # its targets are parts of the sequences
    rows, _ = make_samples(TokenShards(even), "truncate", {"ae": 1}).original(np.arange(MICRO_BATCH))
    for name, (tensors, with_mask) in COLLATORS.items():
        ways[name] = _collate(rows.reshape(MICRO_BATCH, MAX_LENGTH), tensors, with_mask)
        tokens[name] = rows.size
    seconds = interleaved_seconds(ways, torch.device("cpu"), repeats)
    return {name: tokens[name] / MAX_LENGTH / taken for name, taken in seconds.items()}


def make_samples(
    shards: TokenShards, building: Building, mixture: dict[str, float], whole_word: bool = False
) -> PretrainSamples:
    """Samples with the paper's noise, for a model of base size."""
    specials = shards.special_ids
    starts = piece_rules(tokenizer(), shards.vocab_size).starts if whole_word else None
    return PretrainSamples(
        shards,
        sequence=building,
        max_length=MAX_LENGTH,
        corruption=Corruption(0.15, 0.5, specials["mask"], shards.vocab_size, mixture, (specials["unk"],), starts),
        seed=0,
        rules=BnbTargetRules(BnbConfig(encoder=BertConfig(vocab_size=shards.vocab_size), decoder_positions="shared")),
    )


def _loader(samples: PretrainSamples) -> StepLoader:
    return StepLoader(samples, seed=0, micro_batch=MICRO_BATCH, accumulation_steps=ACCUMULATION, rank=0, world_size=1)


def _collate(rows: np.ndarray, tensors: str, with_mask: bool) -> Callable[[], Any]:
    collator = DataCollatorForLanguageModeling(tokenizer(), mlm_probability=0.15, return_tensors=tensors)
    examples = [{"input_ids": row} for row in rows.tolist()]
    if with_mask:
        mask = [1, *[0] * (MAX_LENGTH - 2), 1]
        examples = [{**example, "special_tokens_mask": mask} for example in examples]
    return lambda: collator([dict(example) for example in examples])


def measure_index(directory: Path, num_documents: int) -> list[dict[str, Any]]:
    """Measure the start of a run at a random position of a corpus, for each way of building samples.

    Each measurement has its own process, and begins after the imports. It gives wall-clock seconds from opening the
    shards to the first batch, and the growth of resident memory until then: the remaining growth, and the peak.
    """
    shards = write_shards(directory / "index", wikipedia_lengths(num_documents), with_tokens=False)
    return [_in_new_process(_first_batch, shards, building) for building in ("truncate", "chunk", "pack")]


def _in_new_process(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        with ctrl_c_held_back():
            result = pool.submit(function, *arguments)
        try:
            return result.result()
        except BaseException:
            for process in multiprocessing.active_children():
                process.kill()
            raise


def _first_batch(directory: Path, building: Building) -> dict[str, Any]:
    before, clock = _resident_bytes("VmRSS"), time.perf_counter()
    samples = make_samples(TokenShards(directory), building, {"mlm+plm": 1})
    ready = time.perf_counter()
    position = random.Random(0).randrange(100 * len(samples))
    batches = next(iter(_loader(samples).steps(position, 1)))
    end = time.perf_counter()
    return {
        "sequence": building,
        "samples": len(samples),
        "position": position,
        "open_seconds": ready - clock,
        "first_batch_seconds": end - clock,
        "index_bytes": _resident_bytes("VmRSS") - before,
        "peak_bytes": _resident_bytes("VmHWM") - before,
        "sequences_in_first_step": sum(batch.source_lengths.size for batch in batches),
    }


def _resident_bytes(field: str) -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(f"{field}:")) * 1024


def measure(num_documents: int, repeats: int, directory: Path | None) -> dict[str, Any]:
    """Measure both parts, in a temporary directory below ``directory``."""
    with tempfile.TemporaryDirectory(prefix="bench-loader-", dir=directory) as temporary:
        return {
            "sequences_per_cpu_second": measure_throughput(Path(temporary), repeats),
            "index": measure_index(Path(temporary), num_documents),
        }


def table(figures: dict[str, Any]) -> str:
    """Two Markdown tables: throughput with ratios to the collator, and the index."""
    rates = figures["sequences_per_cpu_second"]
    usual, fastest = (rates[name] for name in COLLATORS)
    speed = markdown_table(
        ("objective", "sequences of 512 / CPU s", "times the collator", "times its fastest"),
        ((name, f"{rate:,.0f}", f"{rate / usual:.1f}", f"{rate / fastest:.1f}") for name, rate in rates.items()),
    )
    index = markdown_table(
        ("index", "samples", "first batch after s", "MB", "peak MB"),
        (
            (
                row["sequence"],
                f"{row['samples']:,}",
                f"{row['first_batch_seconds']:.2f}",
                *(f"{row[size] / 1e6:,.0f}" for size in ("index_bytes", "peak_bytes")),
            )
            for row in figures["index"]
        ),
    )
    return f"{speed}\n\n{index}"


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bench loader``."""
    describe(
        command,
        "Measure the data loader on synthetic shards: throughput against Hugging Face's collator, and memory and\n"
        "time to the first batch of a large corpus.",
        "bnb-ds bench loader --documents 1000000 --repeats 3",
    )
    command.add_argument(
        "--documents", type=positive, default=10_000_000, help="documents of the large corpus (default %(default)s)"
    )
    add_repeats(command, 5)
    command.add_argument(
        "--directory",
        type=Path,
        help="directory for the synthetic shards, which are removed afterwards (default: /tmp)",
    )
    add_json(command)
    command.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    refuse_missing_parent(args.json, overwrite=args.overwrite)
    if args.directory is not None and not args.directory.is_dir():
        raise ConfigError(f"--directory {args.directory}: no such directory: make it first")
    torch.set_num_threads(1)
    setting = {"documents": args.documents, "repeats": args.repeats, **versions(), "numpy": np.__version__}
    print(", ".join(f"{name} {value}" for name, value in setting.items()), flush=True)
    figures = measure(args.documents, args.repeats, args.directory)
    print(table(figures))
    write(args.json, {**setting, **figures})
