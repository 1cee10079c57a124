"""``bnb-ds plan``: how fast a pre-training step would be on a number of GPUs, and where it would stop scaling."""

from __future__ import annotations

import argparse

from bnb_ds.common.arguments import CommandParser, describe, positive

_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_GIGA = 1e9


def add_plan(command: CommandParser) -> None:
    """Add the arguments of ``bnb-ds plan``."""
    describe(
        command,
        "Compute the time of a pre-training step on 1 to 1,024 GPUs from data sheets and formulas: computation,\n"
        "all-reduce by rings at each ZeRO stage, the slowest rank, the optimizer, checkpoints. Nothing is measured:\n"
        "put the numbers of `bash runs/gpu_check.sh` and of your network in place of the defaults.",
        "bnb-ds plan --gpus 128 --gpu a100",
    )
    command.add_argument("--gpu", choices=("v100", "a100", "h100", "h200"), required=True, help="kind of GPU")
    command.add_argument("--gpus", type=positive, help="number of GPUs that is added to the table and marked")
    command.add_argument("--deepspeed-config", help="JSON file (default: the shipped one for the GPU)")
    command.add_argument("--size", choices=("base", "large"), default="base", help="both halves (default %(default)s)")
    command.add_argument("--batch", type=positive, help="samples of a step (default: that of the JSON)")
    command.add_argument("--length", type=positive, default=512, help="tokens of a sample (default %(default)s)")
    command.add_argument(
        "--efficiency", type=_share, default=0.4, help="share of the peak that one GPU reaches (default %(default)s)"
    )
    command.add_argument("--host-ms", type=_number, default=20, help="ms to launch a micro step (default %(default)s)")
    command.add_argument("--node", type=positive, default=8, help="GPUs of a machine (default %(default)s)")
    command.add_argument(
        "--link", type=_above_zero, help="GB/s from a GPU to its machine's others (default: data sheet)"
    )
    command.add_argument("--network", type=_above_zero, help="GB/s of a machine's network (default: data sheet)")
    command.add_argument(
        "--variation",
        type=_number,
        default=0.05,
        help="deviation of a micro step's time, a share (default %(default)s)",
    )
    command.add_argument("--storage", type=_above_zero, default=2, help="GB/s of a checkpoint (default %(default)s)")
    command.add_argument(
        "--checkpoint-steps", type=positive, default=1000, help="steps between checkpoints (default %(default)s)"
    )
    command.set_defaults(run=_plan)


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r}: give a number of at least 0")
    return value


def _above_zero(text: str) -> float:
    value = _number(text)
    if not value:
        raise argparse.ArgumentTypeError(f"{text!r}: give a number above 0")
    return value


def _share(text: str) -> float:
    value = _number(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give a number above 0 and at most 1")
    return value


def _plan(args: argparse.Namespace) -> int:
    # Imported here, so that --help is quick.
    import numpy as np
    import torch

    from bnb_ds.bench.scaling import GPUS, Setting, advice, of_ranks, step_time
    from bnb_ds.common.markdown import markdown_table
    from bnb_ds.config.model_section import ModelSize
    from bnb_ds.modeling import BnbConfig, BnbForConditionalGeneration
    from bnb_ds.train.estimates import count_parameters

    gpu = GPUS[args.gpu]
    setting = Setting(
        gpu,
        efficiency=args.efficiency,
        host_seconds=args.host_ms / 1e3,
        node=args.node,
        link=(args.link or 0) * _GIGA,
        network=(args.network or 0) * _GIGA,
        variation=args.variation,
        storage=args.storage * _GIGA,
        checkpoint_steps=args.checkpoint_steps,
    )
    large = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
    bert = {**ModelSize(**(large if args.size == "large" else {})).model_dump(), "vocab_size": 28_996}
    config = BnbConfig(encoder=bert, decoder=bert, decoder_positions="shared")
    with torch.device("meta"):
        num_parameters = count_parameters(BnbForConditionalGeneration(config))
    counts = sorted({*_COUNTS, *([args.gpus] if args.gpus else [])})
    path = args.deepspeed_config or gpu.ds_config
    planned = [ds_config for ds_config in (of_ranks(path, n, args.batch) for n in counts) if ds_config is not None]
    lengths = np.array([args.length])
    times = [step_time(config, num_parameters, ds_config, lengths, setting) for ds_config in planned]
    peak = gpu.peak[planned[0].precision]
    names = ("GPUs", "micro batch", "computing", "waiting", "traffic", "update", "saving", "step", "tokens/s", "MFU")
    rows = [
        (
            f"{time.ranks:,}" + (" <" if time.ranks == args.gpus else ""),
            f"{ds_config.micro_batch} x {time.micro_steps}",
            *(f"{each:.3g}" for each in (time.compute, *time.losses().values(), time.seconds)),
            f"{time.tokens / time.seconds:,.0f}",
            f"{time.mfu(peak):.1%}",
        )
        for ds_config, time in zip(planned, times, strict=True)
    ]
    batch = planned[0].global_batch
    print(f"{gpu.name}, {args.size}, {num_parameters:,} parameters, {path}, {batch:,} samples a step; seconds:")
    print(markdown_table(names, rows))
    reached = [ds_config.world_size for ds_config in planned]
    left = sorted((n for n in counts if n not in reached), key=lambda n: (n != args.gpus, n))
    if left:
        print(
            f"{left[0]:,} GPUs: {batch:,} samples cannot be divided among them; give a larger batch"
            " (--batch), and LAMB (ds_configs/a100_autocast_lamb.json) where it is much larger"
        )
    print("\n".join(advice(times, planned[0], setting)))
    print(
        "published, to compare: BERT large on V100, DeepSpeed's kernels: 66 TFLOP/s, 52% of the peak, on one GPU; 44"
        " minutes on 1,024 (deepspeed.ai, 2020-05-18)"
    )
    return 0
