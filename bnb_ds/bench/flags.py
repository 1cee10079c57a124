"""What the commands ``bnb-ds bench ...`` have in common."""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from bnb_ds.common.arguments import positive
from bnb_ds.common.files import write_atomic
from bnb_ds.errors import ConfigError


def add_common(command: argparse.ArgumentParser, *, dtypes: Iterable[str], repeats: int, smooths: bool = True) -> None:
    """Flags of the subjects that compare ways of computing on one device; ``smooths``: the loss has a KL term."""
    command.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default %(default)s")
    command.add_argument("--dtype", choices=dtypes, default="fp32", help="of matrix products (default %(default)s)")
    command.add_argument("--repeats", type=positive, default=repeats, help="rounds (default %(default)s)")
    command.add_argument("--threads", type=positive, default=2, help="on the CPU (default %(default)s)")
    if smooths:
        command.add_argument("--kl-weight", type=float, default=0.1, help="of the smoothing term (default %(default)s)")
    command.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")


def announce(args: argparse.Namespace, **more: Any) -> dict[str, Any]:
    """Check what could not work, and print on what and with what is measured."""
    refuse_missing_device(args.device)
    refuse_missing_parent(args.json)
    torch.set_num_threads(args.threads)
    setting = {
        "device": torch.cuda.get_device_name() if args.device == "cuda" else f"CPU, {args.threads} threads",
        "dtype": args.dtype,
        **({"kl_weight": args.kl_weight} if "kl_weight" in args else {}),
        "repeats": args.repeats,
        **versions(),
        **more,
    }
    print(", ".join(f"{name} {value}" for name, value in setting.items()), flush=True)
    return setting


def write(path: Path | None, figures: dict[str, Any]) -> None:
    """Write figures as JSON, if a file is named."""
    if path is not None:
        write_atomic(path, json.dumps(figures, indent=2) + "\n")


def versions() -> dict[str, str]:
    """What the figures depend on."""
    return {"torch": torch.__version__, "python": platform.python_version()}


def refuse_missing_device(device: str) -> None:
    """Say that there is no GPU, before anything is measured."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch sees no GPU here: use --device cpu")


def refuse_missing_parent(file: Path | None, flag: str = "json") -> None:
    """Say that there is no place for the figures, before anything is measured."""
    if file is not None and not file.parent.is_dir():
        raise ConfigError(f"--{flag} {file}: there is no directory {file.parent}: make it first")
