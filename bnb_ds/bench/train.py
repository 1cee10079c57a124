"""``bnb-ds bench train``: measure an optimisation step on unpadded tokens against the padded reference.

Both ways train the same weights on the same samples: documents of a shard directory, cut to a maximum length, with
their first tokens as target. *ours* computes only real tokens, with the fused loss. *padded* works like the reference
implementation: it pads every source to the maximum, has as many decoder slots, and computes all logits,
``log_softmax``, torch's CTC loss and the KL term. With ``--method``, ours is measured again with glancing or deep
supervision, whose price is then shown.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bnb_ds.bench import ctc
from bnb_ds.bench.flags import add_common, announce, write
from bnb_ds.bench.measure import clock, peak_bytes
from bnb_ds.common.arguments import describe, positive
from bnb_ds.common.markdown import markdown_table
from bnb_ds.common.randomness import permuted
from bnb_ds.errors import ConfigError, DataError
from bnb_ds.model.configuration import BnbConfig
from bnb_ds.model.slots import decoder_lengths
from bnb_ds.modeling import BnbForConditionalGeneration
from bnb_ds.shards.reader import TokenShards

WAYS = ("ours", "padded")
#: fields of the configuration for each method
METHODS: dict[str, dict[str, Any]] = {
    "glancing": {"decoder_tokens": True, "mask_token_id": 0},
    "deep_supervision": {"deep_supervision": True},
}
_GLANCING_RATIO = 0.5

#: name -> hidden size, layers of each half, attention heads
SIZES = {"tiny": (128, 2, 2), "mid": (256, 4, 4), "base": (768, 12, 12), "large": (1024, 24, 16)}


@dataclass(frozen=True)
class Setting:
    """The model, the data and the repeats of a measurement."""

    shards: Path
    size: str
    batch_size: int
    max_length: int
    target_tokens: int | None
    decoder_ratio: float
    kl_weight: float
    dtype: torch.dtype
    device: torch.device
    repeats: int
    methods: tuple[str, ...] = ()
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Batch:
    """The samples of one step, packed and padded."""

    packed: dict[str, Any]
    padded: dict[str, Tensor]
    num_tokens: int


def batches(setting: Setting) -> list[Batch]:
    """Make one batch for each repeat, from documents drawn without replacement.

    Raises:
        DataError: the shards have fewer documents than samples.
    """
    shards = TokenShards(setting.shards, "train")
    count = setting.batch_size * setting.repeats
    if len(shards) < count:
        raise DataError(
            f"{setting.shards}: holds {len(shards)} documents for {setting.repeats} batches of {setting.batch_size}; "
            "lower --repeats or --batch-size"
        )
    order = permuted(np.arange(count), len(shards), np.uint64(setting.seed))
    cls_id, sep_id = (torch.tensor([shards.special_ids[name]]) for name in ("cls", "sep"))
    made = []
    for chosen in order.reshape(setting.repeats, setting.batch_size):
        contents = [torch.from_numpy(shards.document(i)[: setting.max_length - 2].astype(np.int64)) for i in chosen]
        sources = [torch.cat((cls_id, content, sep_id)) for content in contents]
        targets = [torch.cat((cls_id, content[: setting.target_tokens], sep_id)) for content in contents]
        made.append(_batch(sources, targets, setting))
    return made


def _batch(sources: list[Tensor], targets: list[Tensor], setting: Setting) -> Batch:
    lengths = torch.tensor([len(source) for source in sources])
    label_lengths = torch.tensor([len(target) for target in targets])
    width = setting.max_length
    packed = {
        "input_ids": torch.cat(sources),
        "cu_seqlens": F.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0)),
        "labels": torch.cat(targets),
        "label_lengths": label_lengths,
    }
    padded = {
        "input_ids": torch.stack([F.pad(source, (0, width - len(source))) for source in sources]),
        "attention_mask": (torch.arange(width) < lengths[:, None]).long(),
        "labels": torch.nn.utils.rnn.pad_sequence(targets, batch_first=True),
        "label_lengths": label_lengths,
    }
    packed, padded = ({name: t.to(setting.device) for name, t in form.items()} for form in (packed, padded))
    counts = {"max_seqlen": int(lengths.max()), "max_label_length": int(label_lengths.max())}
    return Batch({**packed, **counts}, padded, int(lengths.sum()))


class Contest:
    """The ways. Each has its own model and optimizer; the models start from equal weights."""

    def __init__(self, setting: Setting, vocab_size: int):
        hidden, layers, heads = SIZES[setting.size]
        bert = {
            "vocab_size": vocab_size,
            "hidden_size": hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "intermediate_size": 4 * hidden,
            "max_position_embeddings": max(512, setting.max_length),
        }
        common = {"encoder": bert, "decoder": bert, "kl_weight": setting.kl_weight, "decoder_positions": "shared"}
        torch.manual_seed(setting.seed)
        ours = BnbForConditionalGeneration(BnbConfig(decoder_length_ratio=setting.decoder_ratio, **common))
        padded = BnbForConditionalGeneration(
            BnbConfig(decoder_length="padded", **{**common, "decoder_positions": "absolute"})
        )
        padded.load_state_dict(ours.state_dict())
        with_methods = {}
        for name in setting.methods:
            config = BnbConfig(decoder_length_ratio=setting.decoder_ratio, **common, **METHODS[name])
            with_methods[name] = BnbForConditionalGeneration(config)
            with_methods[name].load_state_dict(ours.state_dict(), strict=False)  # what a method adds is new
        self._kl_weight = setting.kl_weight
        self._dtype, self._device = setting.dtype, setting.device
        models = {"ours": ours, "padded": padded, **with_methods}
        self._models = {name: model.to(setting.device).train() for name, model in models.items()}
        self._optimizers = {name: torch.optim.AdamW(m.parameters(), lr=1e-5) for name, m in self._models.items()}

    def ways(self) -> dict[str, Callable[[Batch], None]]:
        """Name of a way -> function that does one optimisation step on a batch."""
        return {
            "ours": lambda batch: self._step("ours", batch, lambda model: model(**batch.packed).loss),
            "padded": lambda batch: self._step("padded", batch, lambda model: self._plain_loss(model, batch.padded)),
            **{name: partial(self._step_with, name) for name in self._models if name in METHODS},
        }

    def _step_with(self, name: str, batch: Batch) -> None:
        glance: dict[str, Any] = {}
        if name == "glancing":
            slots = decoder_lengths(batch.packed["cu_seqlens"].diff(), self._models[name].config)
            draws = torch.rand(int(slots.sum()), device=self._device)
            glance = {"glance_ratio": _GLANCING_RATIO, "glance_draws": draws}
        self._step(name, batch, lambda model: model(**batch.packed, **glance).loss)

    def num_parameters(self) -> int:
        """The number of parameters of each model."""
        return sum(parameter.numel() for parameter in self._models["ours"].parameters())

    def _step(self, name: str, batch: Batch, loss_of: Callable[[BnbForConditionalGeneration], Tensor]) -> None:
        low = self._dtype != torch.float32
        with torch.autocast(self._device.type, dtype=self._dtype if low else None, enabled=low):
            loss = loss_of(self._models[name])
        loss.backward()
        self._optimizers[name].step()
        self._optimizers[name].zero_grad()

    def _plain_loss(self, model: BnbForConditionalGeneration, padded: dict[str, Tensor]) -> Tensor:
        logits_BTV = model(padded["input_ids"], padded["attention_mask"]).logits
        log_probs = F.log_softmax(logits_BTV, -1, dtype=torch.float32)
        positions = torch.full_like(padded["label_lengths"], log_probs.shape[1])
        nll = F.ctc_loss(
            log_probs.transpose(0, 1), padded["labels"], positions, padded["label_lengths"], zero_infinity=True
        )
        return nll - self._kl_weight * (log_probs.sum() / log_probs.numel() + math.log(log_probs.shape[2]))


def measure(setting: Setting) -> dict[str, Any]:
    """Measure the seconds of all steps, the real source tokens, and the largest memory peak of a step in bytes.

    The peak excludes weights, optimizer states and batches, which are the same in both ways.

    Raises:
        ConfigError: the maximum length is below 3.
        DataError: the shards have fewer documents than samples.
    """
    if setting.max_length < 3:
        raise ConfigError(f"--max-length {setting.max_length}: give at least 3 tokens")
    contest = Contest(setting, TokenShards(setting.shards, "train").vocab_size)
    steps, ways, seconds_of = batches(setting), contest.ways(), clock(setting.device)
    seconds = dict.fromkeys(ways, 0.0)
    for run in ways.values():  # warm-up: it makes optimizer states and chooses kernels
        run(steps[0])
    for step in steps:
        for name, run in ways.items():
            seconds[name] += seconds_of(lambda run=run, step=step: run(step))
    fullest = max(steps, key=lambda step: step.num_tokens)
    return {
        "seconds": seconds,
        "tokens": sum(step.num_tokens for step in steps),
        "padded_tokens": setting.max_length * setting.batch_size * len(steps),
        "parameters": contest.num_parameters(),
        "peak_bytes": {name: peak_bytes(lambda run=run: run(fullest), setting.device) for name, run in ways.items()},
    }


def table(result: dict[str, Any]) -> str:
    """A Markdown table: tokens per second and peak memory of both ways, and their ratios."""
    tokens, seconds, peak = result["tokens"], result["seconds"], result["peak_bytes"]
    rates = [tokens / seconds[way] for way in WAYS]
    mib = [peak[way] / 2**20 for way in WAYS]
    rows = (
        ("real source tokens/s", f"{rates[0]:,.0f}", f"{rates[1]:,.0f}", f"{rates[0] / rates[1]:.2f} x"),
        ("peak of a step, MiB", f"{mib[0]:,.0f}", f"{mib[1]:,.0f}", f"1/{mib[1] / mib[0]:.1f}"),
    )
    tables = [markdown_table(("", "ours", "padded", "ours against padded"), rows)]
    methods = [name for name in seconds if name in METHODS]
    if methods:
        prices = [
            (
                name,
                f"{tokens / seconds[name]:,.0f}",
                f"{seconds[name] / seconds['ours']:.2f} x",
                f"{peak[name] / 2**20:,.0f}",
            )
            for name in methods
        ]
        tables.append(markdown_table(("with", "real source tokens/s", "time of ours", "peak of a step, MiB"), prices))
    return "\n\n".join(tables)


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bench train``."""
    describe(
        command,
        "Measure speed and peak memory of an optimisation step on unpadded tokens, against the padded reference.",
        "bnb-ds bench train --shards work/shards/tiny --size tiny --batch-size 4 --repeats 3",
    )
    command.add_argument(
        "--shards", type=Path, required=True, help="shard directory; its document lengths decide the gain"
    )
    command.add_argument("--size", choices=SIZES, default="mid", help="size of the model (default %(default)s)")
    command.add_argument("--batch-size", type=positive, default=8, help="sequences of a step (default %(default)s)")
    command.add_argument(
        "--max-length", type=positive, default=512, help="most tokens of a source (default %(default)s)"
    )
    command.add_argument(
        "--target-tokens",
        type=positive,
        help="use only this many first tokens of a source as its target (default: all)",
    )
    command.add_argument(
        "--decoder-ratio", type=float, default=1.0, help="our decoder slots per source token (default %(default)s)"
    )
    command.add_argument(
        "--method",
        dest="methods",
        action="append",
        choices=METHODS,
        default=[],
        help="also measure our steps with this method; may be repeated",
    )
    add_common(command, dtypes=("fp32", "bf16"), repeats=6)
    command.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    chosen = ("shards", "size", "batch_size", "max_length", "target_tokens", "decoder_ratio")
    setting = announce(args, **{name: getattr(args, name) for name in (*chosen, "methods")})
    result = measure(
        Setting(
            **{name: getattr(args, name) for name in (*chosen, "kl_weight", "repeats")},
            methods=tuple(dict.fromkeys(args.methods)),
            dtype=ctc.DTYPES[args.dtype],
            device=torch.device(args.device),
        )
    )
    share = result["tokens"] / result["padded_tokens"]
    print(f"{result['parameters'] / 1e6:.1f}M parameters, {result['tokens']:,} real tokens, {share:.0%} of the padded")
    print(table(result))
    write(args.json, {**setting, "shards": str(args.shards), **result})
