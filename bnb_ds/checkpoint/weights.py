"""Read the weights of a DeepSpeed checkpoint of any ZeRO stage."""

from __future__ import annotations

import io
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import torch

from bnb_ds.checkpoint.safe_loading import data_only
from bnb_ds.errors import CheckpointError

_MODEL_FILE = "mp_rank_00_model_states.pt"


def read_weights(found: Path) -> dict[str, torch.Tensor]:
    """Read the consolidated fp32 weights of a checkpoint to the CPU.

    Raises:
        CheckpointError: the files are not those of a DeepSpeed checkpoint.
    """
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    partitioned = any(found.glob("*_optim_states.pt"))
    try:
        with data_only(found):
            if partitioned:
                with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):  # DeepSpeed prints its progress
                    weights = dict(get_fp32_state_dict_from_zero_checkpoint(str(found.parent), tag=found.name))
            # At ZeRO stage 1, DeepSpeed leaves frozen weights to the file of the model. Stage 3 has no such file.
            if not partitioned or (found / _MODEL_FILE).is_file():
                own = torch.load(found / _MODEL_FILE, map_location="cpu", mmap=partitioned)["module"]
                weights = {**own, **weights} if partitioned else own
    except CheckpointError:
        raise
    except (OSError, KeyError, ValueError, RuntimeError, EOFError) as error:
        raise CheckpointError(f"{found}: cannot be read as a DeepSpeed checkpoint: {error}") from None
    return {name: tensor.float() for name, tensor in weights.items()}
