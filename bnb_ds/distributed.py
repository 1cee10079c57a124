"""Ranks, barriers and sums; the only importer of ``torch.distributed``."""

from __future__ import annotations

import os
import socket
import warnings
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from bnb_ds.errors import BnbError

T = TypeVar("T")


def rank() -> int:
    """This process's number among all ranks, from the launcher's environment; 0 without a launcher."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """This process's number among the ranks of its host."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def world_size() -> int:
    """Number of ranks, from the launcher's environment; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this process is the one that prints and writes."""
    return rank() == 0


def init(timeout: timedelta = timedelta(minutes=30)) -> torch.device:
    """Join the process group through DeepSpeed and return this rank's device.

    Started without a launcher, the process becomes the only rank.
    """
    import deepspeed.ops
    from deepspeed import comm
    from deepspeed.accelerator import get_accelerator

    # DeepSpeed calls what newer torch releases rename; a user can do nothing about it.
    warnings.filterwarnings("ignore", message=r"`torch\.distributed\.\w+` is deprecated", category=FutureWarning)
    _become_single_rank_without_launcher()
    accelerator = get_accelerator()
    if accelerator.device_name() == "cpu":
        # DeepSpeed would compile a shared-memory all-reduce at start-up (40 s, needs a compiler, and a process killed
        # meanwhile leaves a lock that hangs every later run); gloo does the same work.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        _share_cores()
        device = torch.device("cpu")
    else:
        accelerator.set_device(local_rank())
        device = torch.device(accelerator.device_name(local_rank()))
    # DeepSpeed makes further groups with torch's default time-out, whatever it is told here.
    dist.distributed_c10d.default_pg_timeout = timeout
    dist.distributed_c10d.default_pg_nccl_timeout = timeout
    comm.init_distributed(timeout=timeout, verbose=False)
    return device


def shutdown() -> None:
    """Leave the process group; without it torch warns of leaked resources at exit."""
    if dist.is_initialized():
        dist.destroy_process_group()


def barrier() -> None:
    """Wait until every rank is here."""
    if dist.is_initialized() and world_size() > 1:
        dist.barrier()


def all_sum(tensor: torch.Tensor) -> torch.Tensor:
    """Sum a tensor over all ranks, in place; a no-op with one rank."""
    if dist.is_initialized() and world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def on_main(function: Callable[[], T]) -> T:
    """Call a function on rank 0 and give its result to every rank; a user's error there is raised on every rank."""
    result, error = None, None
    if is_main():
        try:
            result = function()
        except BnbError as raised:
            error = raised
    if dist.is_initialized() and world_size() > 1:
        box = [result, error]
        dist.broadcast_object_list(box, src=0)
        result, error = box
    if error is not None:
        raise error
    return result


def gather(value: T) -> list[T]:
    """Every rank's ``value``, on every rank, in rank order."""
    if not dist.is_initialized() or world_size() == 1:
        return [value]
    values: list[T | None] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def _become_single_rank_without_launcher() -> None:
    if "RANK" in os.environ:
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))


def _share_cores() -> None:
    """Give each rank of this host its share of the cores; more threads than cores make every rank slower."""
    if "OMP_NUM_THREADS" not in os.environ:
        ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("LOCAL_SIZE", world_size())))
        torch.set_num_threads(max(len(os.sched_getaffinity(0)) // ranks_here, 1))
