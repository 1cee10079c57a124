"""``bnb-ds bench beam``: the CTC beam search beside greedy decoding and beside the search of flashlight-text.

Shapes: B sources, T slots, V vocabulary, W prefixes of a beam, K classes of a slot.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bnb_ds.bench.flags import (
    add_device,
    add_json,
    add_repeats,
    add_threads,
    refuse_missing_device,
    refuse_missing_parent,
    versions,
    write,
)
from bnb_ds.bench.generation.reference_style import POSITIONS, SIZES, Rows, Setting, bnb_model
from bnb_ds.bench.generation.workloads import random_rows
from bnb_ds.bench.measure import interleaved_seconds
from bnb_ds.common.arguments import describe, positive
from bnb_ds.common.markdown import markdown_table
from bnb_ds.common.packing import PackedLayout
from bnb_ds.decoding.beam import search
from bnb_ds.decoding.decode import generate_rows
from bnb_ds.decoding.emissions import Emissions
from bnb_ds.decoding.options import DecodeOptions
from bnb_ds.errors import ConfigError
from bnb_ds.modeling import BnbForConditionalGeneration

VOCAB_SIZE = 28996  # of bert-base-cased
#: a search from log-probabilities [B, T, V] to the tokens of each source
Search = Callable[[Tensor, int, int], list[list[int]]]


def our_search(log_probs_BTV: Tensor, beam_size: int, num_classes: int) -> list[list[int]]:
    """The most probable prefix of `bnb_ds.decoding.beam.search` for each source. Class 0 is the blank."""
    values, ids = log_probs_BTV[..., 1:].topk(num_classes, -1)
    batch_size, num_slots, _ = log_probs_BTV.shape
    emissions = Emissions(
        ids=ids + 1,
        log_probs=values.double(),
        blank=log_probs_BTV[..., 0].double(),
        layout=PackedLayout.from_host(np.full(batch_size, num_slots), ids.device),
        best=ids[..., 0],  # for the greedy output, and the norms for exact scores: the search reads neither
        log_norms=values.new_zeros(batch_size * num_slots),
    )
    found = search(emissions, DecodeOptions(), beam_size)
    best = found.total.argmax(1)[:, None]
    tokens = found.tokens.gather(1, best[..., None].expand(-1, -1, num_slots))[:, 0].tolist()
    ends = found.lengths.gather(1, best)[:, 0].tolist()
    return [row[:end] for row, end in zip(tokens, ends, strict=True)]


def flashlight_search() -> Search:
    """The search of flashlight-text without a lexicon: C++, the same beam, sums over alignments, no language model.

    It takes the blank for one of the classes of a slot, so it gets one more.

    Raises:
        ConfigError: flashlight-text is not installed.
    """
    try:
        decoder = importlib.import_module("flashlight.lib.text.decoder")
    except ImportError:
        raise ConfigError("flashlight-text is not installed: `pip install flashlight-text` to compare") from None

    def run(log_probs_BTV: Tensor, beam_size: int, num_classes: int) -> list[list[int]]:
        options = decoder.LexiconFreeDecoderOptions(
            beam_size=beam_size,
            beam_size_token=num_classes + 1,
            beam_threshold=float("inf"),
            lm_weight=0.0,
            sil_score=0.0,
            log_add=True,
            criterion_type=decoder.CriterionType.CTC,
        )
        searcher = decoder.LexiconFreeDecoder(options, decoder.ZeroLM(), -1, 0, [])
        outputs = []
        for log_probs_TV in log_probs_BTV.float().cpu().contiguous():
            best = searcher.decode(log_probs_TV.data_ptr(), *log_probs_TV.shape)[0]
            # It gives the path: one class for each slot, and -1 before the first and behind the last.
            outputs.append([token for token, _ in itertools.groupby(best.tokens) if token > 0])
        return outputs

    return run


def likely_log_probs(batch_size: int, num_slots: int, vocab_size: int, seed: int = 0) -> Tensor:
    """Float32 [B, T, V], as of a trained model: each slot has a likely class, every other time the blank, and a rival.

    With random weights all classes are nearly equal, and then no two searches find the same.
    """
    generator = torch.Generator().manual_seed(seed)
    logits_BTV = torch.randn(batch_size, num_slots, vocab_size, generator=generator)
    for nats, share_of_blanks in ((14.0, 0.5), (12.5, 0.2)):
        class_BT = torch.randint(1, vocab_size, (batch_size, num_slots), generator=generator)
        class_BT[torch.rand(batch_size, num_slots, generator=generator) < share_of_blanks] = 0
        logits_BTV.scatter_add_(2, class_BT[..., None], torch.full_like(logits_BTV[..., :1], nats))
    return logits_BTV.log_softmax(-1)


@dataclass(frozen=True)
class Case:
    """What one batch size is measured on.

    Attributes:
        model: random weights.
        rows: the sources.
        log_probs: float32 [B, T, V], for the searches alone, on the CPU.
    """

    model: BnbForConditionalGeneration
    rows: Rows
    log_probs: Tensor

    def measure(
        self, beam_sizes: list[int], num_classes: int, other: Search | None, repeats: int
    ) -> list[dict[str, Any]]:
        """One result for each beam size. All ways take turns."""
        device = self.model.device

        def decoding(beam_size: int) -> Callable[[], Any]:
            options = DecodeOptions(beam_size=beam_size, beam_classes=num_classes, token_budget=1 << 40)
            return lambda: generate_rows(self.model, self.rows, options)

        ways: dict[str, Callable[[], Any]] = {"greedy": decoding(1)}
        for size in beam_sizes:
            ways[f"decode {size}"] = decoding(size)
        on_device = interleaved_seconds(ways, device, repeats)
        searches: dict[str, Search] = {"ours": our_search} | ({} if other is None else {"flashlight": other})
        on_cpu = interleaved_seconds(
            {
                f"{name} {size}": lambda run=run, size=size: run(self.log_probs, size, num_classes)
                for size in beam_sizes
                for name, run in searches.items()
            },
            torch.device("cpu"),
            repeats,
        )
        results = []
        for size in beam_sizes:
            result = {
                "batch_size": len(self.rows),
                "beam_size": size,
                "greedy_seconds": on_device["greedy"],
                "decode_seconds": on_device[f"decode {size}"],
                "times_greedy": on_device[f"decode {size}"] / on_device["greedy"],
                "search_seconds": on_cpu[f"ours {size}"],
            }
            if other is not None:
                found = [run(self.log_probs, size, num_classes) for run in searches.values()]
                result["flashlight_seconds"] = on_cpu[f"flashlight {size}"]
                result["same_outputs"] = sum(map(list.__eq__, *found))
            results.append(result)
        return results


def table(results: list[dict[str, Any]]) -> str:
    """A Markdown table, one row for each batch size and beam."""
    names = (
        "batch",
        "beam",
        "decoding, s",
        "times greedy",
        "search alone, s",
        "flashlight-text, s",
        "ours takes",
        "same output",
    )
    rows = []
    for result in results:
        others = ("-", "-", "-")
        if "flashlight_seconds" in result:
            seconds = result["flashlight_seconds"]
            others = (
                f"{seconds:.3g}",
                f"{result['search_seconds'] / seconds:.2f}",
                f"{result['same_outputs']} of {result['batch_size']}",
            )
        rows.append(
            (
                str(result["batch_size"]),
                str(result["beam_size"]) + (" (greedy)" if result["beam_size"] == 1 else ""),
                f"{result['decode_seconds']:.3g}",
                f"{result['times_greedy']:.2f}",
                f"{result['search_seconds']:.3g}",
                *others,
            )
        )
    return markdown_table(names, rows)


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bench beam``."""
    describe(
        command,
        "Measure decoding with the CTC beam search beside greedy decoding, and the search alone beside that of\n"
        "flashlight-text on the same log-probabilities. All weights are random, because speed depends only on sizes.",
        "bnb-ds bench beam --size tiny --beams 1 8 --repeats 3",
    )
    command.add_argument("--size", choices=tuple(SIZES), default="base", help="size of the model (default %(default)s)")
    for flag, default, help_text in (
        ("--slots", 500, "decoder slots of every source"),
        ("--source-tokens", 250, "tokens of every source"),
        ("--classes", 16, "best classes of a slot that the searches try, besides the blank"),
    ):
        command.add_argument(flag, type=positive, default=default, help=f"{help_text} (default %(default)s)")
    command.add_argument(
        "--batch-size", type=positive, nargs="+", default=[1], help="sources decoded together (default %(default)s)"
    )
    command.add_argument(
        "--beams", type=positive, nargs="+", default=[1, 4, 8, 32], help="prefixes of the beam (default %(default)s)"
    )
    add_device(command)
    add_repeats(command, 3)
    add_threads(command)
    add_json(command)
    command.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    refuse_missing_device(args.device)
    refuse_missing_parent(args.json, overwrite=args.overwrite)
    for flag, value, most in (
        ("slots", args.slots, POSITIONS),
        ("source-tokens", args.source_tokens, POSITIONS),
        ("classes", args.classes, VOCAB_SIZE - 1),
    ):
        if value > most:
            raise ConfigError(f"--{flag} {value}: give at most {most}")
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    names = ("size", "slots", "source_tokens", "classes", "threads", "repeats")
    setting = {
        "device": torch.cuda.get_device_name() if args.device == "cuda" else "CPU",
        **{name: getattr(args, name) for name in names},
        **versions(),
    }
    print(", ".join(f"{name} {value}" for name, value in setting.items()), flush=True)
    other: Search | None = None
    try:
        other = flashlight_search()
    except ConfigError as error:
        print(f"skipped: {error}")
    lengths = {"decoder_length_min": args.slots, "decoder_length_max": args.slots}
    model = bnb_model(Setting(args.size, VOCAB_SIZE, "fp32", device, args.repeats), **lengths)
    results = []
    for size in args.batch_size:
        log_probs = likely_log_probs(size, args.slots, VOCAB_SIZE)
        case = Case(model, random_rows(size, args.source_tokens, VOCAB_SIZE), log_probs)
        results += case.measure(args.beams, args.classes, other, args.repeats)
    print(table(results))
    write(args.json, {**setting, "results": results})
