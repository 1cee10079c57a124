"""Checkpoints are data: reading one runs no code that it holds.

DeepSpeed writes its files with pickle, and reads them with an unpickler that calls whatever they name. Here torch's
restricted unpickler reads them. It builds tensors, plain containers, and the few classes of DeepSpeed that its files
hold. DeepSpeed has no setting for this, but torch has an environment variable that overrides what a caller asks for. It
has another that asks for the opposite, which is not heard here.
"""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from bnb_ds.errors import CheckpointError

_FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
_FORCE_NOT = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


def _classes_of_deepspeed() -> list[Callable[..., Any]]:
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return [DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]


@contextmanager
def stages_by_value() -> Iterator[None]:
    """Within the block, DeepSpeed's ZeRO stages are pickled as numbers of their class, which `data_only` reads.

    Python 3.10 does so by itself, and so does 3.11 from 3.11.4 on. Earlier releases of 3.11 call ``getattr`` there.
    """
    from deepspeed.runtime.zero.config import ZeroStageEnum

    before = ZeroStageEnum.__dict__.get("__reduce_ex__")
    ZeroStageEnum.__reduce_ex__ = lambda stage, _protocol: (ZeroStageEnum, (stage.value,))
    try:
        yield
    finally:
        if before is None:
            del ZeroStageEnum.__reduce_ex__
        else:
            ZeroStageEnum.__reduce_ex__ = before


@contextmanager
def data_only(source: Path) -> Iterator[None]:
    """Within the block, `torch.load` reads tensors and plain data, whoever calls it and however.

    Args:
        source: the checkpoint, for the message.

    Raises:
        CheckpointError: a file names anything else, or cannot be read.
    """
    before = {name: os.environ.pop(name, None) for name in (_FORCE, _FORCE_NOT)}
    os.environ[_FORCE] = "1"
    try:
        with torch.serialization.safe_globals(_classes_of_deepspeed()):
            yield
    except pickle.UnpicklingError as error:
        if "GLOBAL" not in str(error):  # no pickle at all
            reason = " ".join(str(error).split())[-200:]
            raise CheckpointError(f"{source}: cannot be read as a DeepSpeed checkpoint: {reason}") from None
        raise _unsafe(source, _first_reason(error)) from None
    except RuntimeError as error:
        if "TorchScript" not in str(error):
            raise
        raise _unsafe(source, "a TorchScript program") from None
    finally:
        del os.environ[_FORCE]
        os.environ.update({name: value for name, value in before.items() if value is not None})


def _unsafe(source: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{source}: holds more than tensors and plain data, which could run code when it is read ({what}); restore it"
        " from a copy that you trust"
    )


def _first_reason(error: Exception) -> str:
    """The line of torch's long explanation that names the class."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next(line for line in lines if "GLOBAL" in line)


def main() -> None:
    """``python -m bnb_ds.checkpoint.safe_loading --input_folder ...``: DeepSpeed's converter, restricted likewise."""
    from deepspeed.checkpoint import ds_to_universal

    args = ds_to_universal.parse_arguments()
    # Its worker processes are forked, and inherit both.
    with data_only(Path(args.input_folder)), stages_by_value():
        ds_to_universal.main(args)


if __name__ == "__main__":
    sys.exit(main())
