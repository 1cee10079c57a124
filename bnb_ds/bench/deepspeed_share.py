"""``bnb-ds bench engine``: time the same training step with DeepSpeed's engine and in a plain PyTorch loop."""

from __future__ import annotations

import argparse
import copy
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bnb_ds.bench.flags import add_device, add_repeats, add_threads, refuse_missing_device
from bnb_ds.bench.measure import interleaved_seconds
from bnb_ds.common.arguments import describe, positive
from bnb_ds.common.markdown import markdown_table
from bnb_ds.config.deepspeed import load_ds_config
from bnb_ds.data.batch import PackedBatch
from bnb_ds.distributed import ranks
from bnb_ds.model.configuration import BnbConfig
from bnb_ds.model.slots import decoder_lengths
from bnb_ds.modeling import BnbForConditionalGeneration
from bnb_ds.train.engine import build_engine, gradient_norm, take_step
from bnb_ds.train.fused import choose_optimizer
from bnb_ds.train.parameters.groups import parameter_groups

_OPTIMIZER = {"lr": 1e-4, "weight_decay": 0.01}
_CLIP = 1.0
#: parts of an engine's step; depending on the stage, communication is inside backward or the optimizer
PARTS = ("data", "forward", "backward", "communication", "optimizer")
_COLLECTIVES = ("gloo:", "nccl:", "c10d::")


@dataclass(frozen=True)
class Work:
    """The size of one step: micro steps, sequences of each, and tokens of a sequence."""

    micro_steps: int
    sequences: int
    tokens: int

    @property
    def tokens_per_step(self) -> int:
        return self.micro_steps * self.sequences * self.tokens


def bert_size(name: str) -> dict[str, int]:
    """Fields of a BERT configuration for ``tiny``, ``base`` or ``large``."""
    return {
        "tiny": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 256},
        "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
        "large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
    }[name]


def random_batch(config: BnbConfig, work: Work) -> PackedBatch:
    """A batch of random sequences of one length, whose targets are the sequences themselves."""
    lengths = np.full(work.sequences, work.tokens)
    slots = np.full(work.sequences, int(decoder_lengths(work.tokens, config)))
    ids = torch.randint(4, config.vocab_size, (work.sequences * work.tokens,))
    return PackedBatch(
        input_ids=ids,
        cu_seqlens=torch.arange(work.sequences + 1, dtype=torch.int32) * work.tokens,
        labels=ids.clone(),
        label_lengths=torch.from_numpy(lengths),
        max_seqlen=work.tokens,
        max_label_length=work.tokens,
        sample_ids=np.arange(work.sequences),
        source_lengths=lengths,
        decoder_lengths=slots,
        num_ordinary=ids.numel(),
        num_masked=0,
        num_infeasible=0,
        num_targets=ids.numel(),
        loss_count=ids.numel(),
    )


def measure(
    size: str, stage: int, precision: str, work: Work, device: torch.device, repeats: int
) -> dict[str, float | str]:
    """Measure seconds of a step in both ways, their ratio, and the parts of the engine's step."""
    torch.manual_seed(0)
    bert = {**bert_size(size), "vocab_size": 28_996, "max_position_embeddings": 512}
    model = BnbForConditionalGeneration(BnbConfig(encoder=bert, decoder=bert, decoder_positions="shared"))
    batch = random_batch(model.config, work)
    bare = _bare_step(copy.deepcopy(model).to(device).train(), batch, work, precision, device)
    parts = _Parts(device)
    engine = _engine_step(model, batch, work, stage, precision, device, parts)
    seconds = interleaved_seconds({"bare loop": bare, "engine": engine}, device, repeats)
    parts.recording = True
    with _collective_seconds(device, parts):
        engine()
    return {
        "stage": stage,
        **seconds,
        "ratio": seconds["engine"] / seconds["bare loop"],
        **{name: parts.seconds.get(name, 0.0) for name in PARTS},
    }


def _bare_step(
    model: nn.Module, batch: PackedBatch, work: Work, precision: str, device: torch.device
) -> Callable[[], None]:
    make, _ = choose_optimizer("AdamW", dict(_OPTIMIZER), device)
    groups = parameter_groups(model, _OPTIMIZER["weight_decay"])
    optimizer = make(groups)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")

    def step() -> None:
        for _ in range(work.micro_steps):
            with autocast:
                loss = model(**batch.model_inputs(device)).loss_sum
            (loss / (batch.num_targets * work.micro_steps)).backward()
        # The training loop reads norm and loss, so this loop does too.
        norm = nn.utils.clip_grad_norm_(model.parameters(), _CLIP)
        float(norm), float(loss.detach())
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _engine_step(
    model: nn.Module,
    batch: PackedBatch,
    work: Work,
    stage: int,
    precision: str,
    device: torch.device,
    parts: _Parts,
) -> Callable[[], None]:
    values: dict[str, Any] = {
        "train_batch_size": work.sequences * work.micro_steps,
        "train_micro_batch_size_per_gpu": work.sequences,
        "gradient_clipping": _CLIP,
        "optimizer": {"type": "AdamW", "params": _OPTIMIZER},
        "zero_optimization": {"stage": stage},
    }
    if precision == "bf16":
        values["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ds.json"
        path.write_text(json.dumps(values), encoding="utf-8")
        engine, _ = build_engine(model, load_ds_config(path, 1), device, lambda step: 1.0)
    engine.train()

    def step() -> None:
        for micro_step in range(work.micro_steps):
            with parts("data"):
                inputs = batch.model_inputs(device)
            with parts("forward"):
                loss = engine(**inputs).loss_sum
            with parts("backward"):
                engine.backward(loss / batch.num_targets)
            if micro_step < work.micro_steps - 1:
                engine.step()
        float(loss.detach())
        with parts("optimizer"):
            norm = gradient_norm(engine)
            take_step(engine, None if norm is None else float(norm))

    return step


class _Parts:
    """Adds up the seconds of the parts of a step while ``recording``; each part ends by waiting for the device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.recording = False
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        if not self.recording:
            yield
            return
        start = self._now()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + self._now() - start

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()


@contextmanager
def _collective_seconds(device: torch.device, parts: _Parts) -> Iterator[None]:
    """Record the time in collective operations, measured by torch's profiler."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        yield
    events = [event for event in profile.events() if event.name.startswith(_COLLECTIVES)]
    parts.seconds["communication"] = sum(event.time_range.elapsed_us() for event in events) / 1e6


def table(results: list[dict[str, float | str]]) -> str:
    """A Markdown table of the results."""
    columns = ("bare loop", "engine", "ratio", *PARTS)
    rows = ((str(result["stage"]), *(f"{result[column]:.3f}" for column in columns)) for result in results)
    return markdown_table(("ZeRO", "bare loop s", "engine s", "ratio", *PARTS), rows)


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bench engine``."""
    describe(
        command,
        "Time a training step with DeepSpeed's engine and in a plain PyTorch loop, and the parts of the engine's step.",
        "bnb-ds bench engine --size tiny --stage 0 --stage 1 --repeats 3",
    )
    command.add_argument(
        "--size", choices=("tiny", "base", "large"), default="base", help="size of the model (default %(default)s)"
    )
    command.add_argument(
        "--stage", type=int, choices=(0, 1, 2, 3), action="append", help="ZeRO stage; repeatable (default: 0 and 1)"
    )
    command.add_argument(
        "--precision", choices=("fp32", "bf16"), default="fp32", help="bf16 uses autocast (default %(default)s)"
    )
    command.add_argument("--micro-steps", type=positive, default=2, help="micro steps of a step (default %(default)s)")
    command.add_argument(
        "--sequences", type=positive, default=4, help="sequences of a micro step (default %(default)s)"
    )
    command.add_argument("--tokens", type=positive, default=128, help="tokens of a sequence (default %(default)s)")
    add_device(command)
    add_repeats(command, 5)
    add_threads(command)
    command.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    refuse_missing_device(args.device)
    os.environ.setdefault("OMP_NUM_THREADS", str(args.threads))
    device = ranks.init()
    torch.set_num_threads(args.threads)
    work = Work(args.micro_steps, args.sequences, args.tokens)
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {args.threads} threads"
    print(f"{name}, {args.size}, {args.precision}, {work.tokens_per_step:,} tokens a step, torch {torch.__version__}")
    results = [measure(args.size, stage, args.precision, work, device, args.repeats) for stage in args.stage or (0, 1)]
    print(table(results))
    ranks.shutdown()
