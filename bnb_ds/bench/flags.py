"""Flags and checks that the commands ``bnb-ds bench SUBJECT`` share."""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from bnb_ds.common.arguments import add_overwrite, positive
from bnb_ds.common.files import refuse_output, refuse_overwriting, write_atomic
from bnb_ds.errors import ConfigError


def add_common(command: argparse.ArgumentParser, *, dtypes: Iterable[str], repeats: int, smooths: bool = True) -> None:
    """Add the flags of subjects that compare ways of computing on one device; ``smooths``: the loss has a KL term."""
    add_device(command)
    command.add_argument(
        "--dtype", choices=dtypes, default="fp32", help="number format of matrix products (default %(default)s)"
    )
    add_repeats(command, repeats)
    add_threads(command)
    if smooths:
        command.add_argument(
            "--kl-weight", type=float, default=0.1, help="weight of the smoothing term (default %(default)s)"
        )
    add_json(command)


def add_device(command: argparse.ArgumentParser) -> None:
    """Add ``--device``."""
    command.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="where to compute (default %(default)s)"
    )


def add_repeats(command: argparse.ArgumentParser, default: int) -> None:
    """Add ``--repeats``."""
    command.add_argument(
        "--repeats", type=positive, default=default, help="rounds of which the median is taken (default %(default)s)"
    )


def add_threads(command: argparse.ArgumentParser) -> None:
    """Add ``--threads``."""
    command.add_argument("--threads", type=positive, default=2, help="threads on the CPU (default %(default)s)")


def add_json(command: argparse.ArgumentParser) -> None:
    """Add ``--json`` and ``--overwrite``."""
    command.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    add_overwrite(command)


def announce(args: argparse.Namespace, **more: Any) -> dict[str, Any]:
    """Check the flags, print the setting of the measurement, and return it."""
    refuse_missing_device(args.device)
    refuse_missing_parent(args.json, overwrite=args.overwrite)
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
    """Write figures as JSON, if a file is given."""
    if path is not None:
        write_atomic(path, json.dumps(figures, indent=2) + "\n")


def versions() -> dict[str, str]:
    """Versions that the figures depend on."""
    return {"torch": torch.__version__, "python": platform.python_version()}


def refuse_missing_device(device: str) -> None:
    """Raise ConfigError before measuring, if there is no GPU."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch sees no GPU here: use --device cpu")


def refuse_missing_parent(
    file: Path | None, flag: str = "json", inputs: Iterable[Path | None] = (), *, overwrite: bool
) -> None:
    """Refuse before measuring an output file that is a directory, lies in none, is one of the inputs, or exists.

    Raises:
        ConfigError, DataError: naming the flag or the file.
    """
    if file is not None:
        refuse_output(file, [path for path in inputs if path is not None], flag=f"--{flag}")
        refuse_overwriting(file, overwrite=overwrite)
