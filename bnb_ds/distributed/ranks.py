"""Ranks, barriers and sums. No other module imports ``torch.distributed``."""

from __future__ import annotations

import fcntl
import ipaddress
import os
import socket
import struct
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from bnb_ds.errors import BnbError, ConfigError

T = TypeVar("T")
E = TypeVar("E", bound=BnbError)

# Launchers that set these start several processes but do not set torch's RANK.
_TASK_COUNTS = ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")


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
    """Whether this process is rank 0, the rank that prints and writes."""
    return rank() == 0


def init(
    timeout: timedelta = timedelta(minutes=30), operation_timeout: timedelta = timedelta(minutes=30)
) -> torch.device:
    """Join the process group through DeepSpeed and return this rank's device.

    Without a launcher, the process becomes the only rank.

    Args:
        timeout: how long the ranks wait for each other at the start.
        operation_timeout: how long one collective operation may take afterwards.

    Raises:
        ConfigError: several tasks were started by a launcher that does not set RANK; or the ranks cannot meet.
    """
    _become_single_rank_without_launcher()
    import deepspeed.ops
    from deepspeed import comm
    from deepspeed.accelerator import get_accelerator

    # DeepSpeed calls functions that newer torch releases have renamed. A user cannot change that.
    warnings.filterwarnings("ignore", message=r"`torch\.distributed\.\w+` is deprecated", category=FutureWarning)
    accelerator = get_accelerator()
    assert accelerator is not None
    if accelerator.device_name() == "cpu":
        # DeepSpeed would compile a shared-memory all-reduce at start-up. That takes 40 s and a compiler, and a process
        # killed meanwhile leaves a lock on which every later run hangs. gloo does the same work.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        _share_cores()
        _name_interface()
        device = torch.device("cpu")
    else:
        accelerator.set_device(local_rank())
        device = torch.device(accelerator.device_name(local_rank()))
    # DeepSpeed makes further groups with torch's default time-out and ignores the one given here.
    dist.distributed_c10d.default_pg_timeout = operation_timeout
    dist.distributed_c10d.default_pg_nccl_timeout = operation_timeout
    with _meeting_errors():
        comm.init_distributed(timeout=timeout, verbose=False)
    dist.distributed_c10d._set_pg_timeout(operation_timeout)
    return device


@contextmanager
def _meeting_errors() -> Iterator[None]:
    """Turn what torch says when the ranks cannot meet into one line with the way out."""
    try:
        yield
    except (RuntimeError, ValueError) as error:  # torch's DistError is a RuntimeError
        address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        way_out = "check that every rank runs and reaches that host, and that no other job uses the port"
        if "EADDRINUSE" in str(error) or "address already in use" in str(error).lower():
            reason, way_out = "the port is in use", "choose another one with --master_port"
        raise ConfigError(f"rank {rank()} cannot meet the other ranks at {address} ({reason}); {way_out}") from error


def shutdown(*, after_error: bool = False) -> None:
    """Leave the process group. gloo needs this for a clean exit.

    After an error an NCCL group is not left. Leaving it is a collective operation: this rank would wait for ranks
    without an error, while the launcher waits for this rank to end.
    """
    if dist.is_initialized() and not (after_error and dist.get_backend() == "nccl"):
        dist.destroy_process_group()


def barrier() -> None:
    """Wait until every rank has called this."""
    if dist.is_initialized() and world_size() > 1:
        dist.barrier()


def all_sum(tensor: torch.Tensor) -> torch.Tensor:
    """Sum a tensor over all ranks, in place. With one rank this does nothing."""
    if dist.is_initialized() and world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def start_all_sum(tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Begin to sum a tensor over all ranks, in place, while other work goes on.

    Returns:
        A function that returns the tensor with the sum. On a GPU only the device waits in it, not the host.
    """
    if not dist.is_initialized() or world_size() == 1:
        return lambda: tensor
    work = dist.all_reduce(tensor, async_op=True)

    def finish() -> torch.Tensor:
        if work is not None:  # None: this rank takes no part
            work.wait()
        return tensor

    return finish


def on_main(function: Callable[[], T]) -> T:
    """Call a function on rank 0 and give its result to every rank. If it raises, every rank raises the same error."""
    result: T | None = None
    error: Exception | None = None
    if is_main():
        try:
            result = function()
        except Exception as raised:
            error = raised
    if dist.is_initialized() and world_size() > 1:
        # Other exceptions travel as text, because not every exception can be pickled.
        portable = error if error is None or isinstance(error, BnbError) else RuntimeError(f"on rank 0: {error!r}")
        box: list[Any] = [result, portable]
        dist.broadcast_object_list(box, src=0)
        if not is_main():
            result, error = box
    if error is not None:
        raise reported_by_rank_0(error) if isinstance(error, BnbError) else error
    return cast("T", result)


def reported_by_rank_0(error: E) -> E:
    """Mark an error that every rank raises: rank 0 reports it, and the others end without a message."""
    error.reported_by_another_rank = not is_main()
    return error


def require_shared(directory: Path) -> None:
    """Check that all ranks see the same directory.

    Raises:
        ConfigError: a host does not see a file that rank 0 has written there.
    """
    token = on_main(lambda: f"{os.getpid()}.{time.time_ns()}")
    probe = directory / ".shared.partial"
    on_main(lambda: probe.write_text(token))
    try:
        seen = probe.read_text() == token
    except OSError:
        seen = False
    blind = sorted({host for host, sees in gather((socket.gethostname(), seen)) if not sees})
    on_main(lambda: probe.unlink(missing_ok=True))
    if blind:
        raise reported_by_rank_0(
            ConfigError(
                f"output_dir {directory}: {', '.join(blind)} cannot see what rank 0 writes there; put it on storage"
                " that all hosts share, under the same path"
            )
        )


def gather(value: T) -> list[T]:
    """Every rank's ``value``, on every rank, in rank order."""
    if not dist.is_initialized() or world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def free_port() -> int:
    """A port of this host that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _become_single_rank_without_launcher() -> None:
    if "RANK" in os.environ:
        return
    for name in _TASK_COUNTS:
        if int(os.environ.get(name, "1")) > 1:
            raise ConfigError(
                f"{name} is {os.environ[name]} but RANK is not set: every task would train alone into one output_dir;"
                " start with deepspeed or torchrun"
            )
    port = str(free_port())
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)


def _name_interface() -> None:
    """Tell gloo which network interface connects the hosts, unless the user has set it."""
    interface = interface_towards(os.environ["MASTER_ADDR"])
    if interface is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)


def _share_cores() -> None:
    """Give each rank of this host its share of the cores. More threads than cores would slow every rank down."""
    if "OMP_NUM_THREADS" not in os.environ:
        ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("LOCAL_SIZE", world_size())))
        torch.set_num_threads(max(len(os.sched_getaffinity(0)) // ranks_here, 1))


_SIOCGIFADDR = 0x8915


def interface_towards(host: str) -> str | None:
    """Name of the network interface that this host uses to reach ``host``; None if ``host`` is this host.

    On Debian a host's own name resolves to 127.x. Unless gloo is given an interface, it listens on that address, and no
    other host can connect.
    """
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 1))  # sends no packet, only looks into the routing table
            address = probe.getsockname()[0]
    except OSError:
        return None
    if ipaddress.ip_address(address).is_loopback:
        return None
    for _, name in socket.if_nameindex():
        if _address_of(name) == address:
            return name
    return None


def _address_of(interface: str) -> str | None:
    request = struct.pack("256s", interface.encode()[:15])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            return socket.inet_ntoa(fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)[20:24])
        except OSError:  # the interface has no IPv4 address
            return None
