"""Where trials run: one on each free GPU, or without GPUs one on each free core."""

from __future__ import annotations

import os
import subprocess

from bnb_ds.errors import ConfigError

#: a GPU with more memory in use belongs to somebody
_MOST_USED = 0.1


def free_places(number: int | None = None) -> list[dict[str, str]]:
    """The environment variables that send a process to each place.

    Args:
        number: so many places, even if that puts several on one GPU; None: one for each that is free now.

    Raises:
        ConfigError: there are GPUs, but none is free.
    """
    gpus = _gpus()
    if gpus:
        free = [gpu for gpu, is_free in gpus.items() if is_free]
        if not free and number is None:
            raise ConfigError("no GPU is free; wait, or say with --jobs how many trials shall share them")
        used = free or list(gpus)
        return [{"CUDA_VISIBLE_DEVICES": used[place % len(used)]} for place in range(number or len(used))]
    cores = len(os.sched_getaffinity(0))
    count = number or max(cores - round(os.getloadavg()[0]), 1)
    return [{"OMP_NUM_THREADS": str(max(cores // count, 1))}] * count


def _gpus() -> dict[str, bool]:
    """Index of each GPU that this process may use -> whether it is free, as the driver's tool says."""
    query = ["nvidia-smi", "--query-gpu=index,memory.used,memory.total", "--format=csv,noheader,nounits"]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible == "" or os.environ.get("DS_ACCELERATOR") == "cpu":
        return {}
    if visible:
        query += ["--id", visible]
    try:
        listed = subprocess.run(query, capture_output=True, text=True, check=True, timeout=60).stdout
        rows = [[part.strip() for part in line.split(",")] for line in listed.splitlines()]
        return {index: float(used) <= _MOST_USED * float(total) for index, used, total in rows}
    except (OSError, subprocess.SubprocessError, ValueError):
        return {}
