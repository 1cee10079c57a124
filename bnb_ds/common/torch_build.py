"""Whether the installed torch can compute on the GPUs of this machine; ``python -m bnb_ds.common.torch_build``.

A wheel of torch holds code for some GPUs and needs some driver. The wheels of PyPI have none for a V100, and fail there
only at the first kernel. `runs/environment.sh` calls this after an installation, and any user may.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys

from bnb_ds.errors import EXIT_USER_ERROR

_INDEX = "https://download.pytorch.org/whl"
#: driver from which a wheel for CUDA 12 runs (NVIDIA, CUDA compatibility, minor versions)
_DRIVER_OF_CUDA_12 = 525
#: first capability that needs a wheel newer than that for CUDA 12.6
_BLACKWELL = (10, 0)


def fault() -> str | None:
    """One line on why torch cannot use the first GPU, with the command that helps; None if it can, or there is none."""
    card = _card()
    if card is None:
        return None
    name, driver = card
    reason, capability = _why_not()
    if reason is None:
        return None
    release = re.match(r"\d+", driver)
    if release is not None and int(release[0]) < _DRIVER_OF_CUDA_12:
        way_out = f"update the driver to {_DRIVER_OF_CUDA_12} or later"
    else:
        wheel = "cu126" if capability is None or capability < _BLACKWELL else "cu128"
        way_out = (
            f"take the wheel {wheel}: python -m pip install --force-reinstall torch --index-url {_INDEX}/{wheel}"
            f" (with BNB_TORCH_INDEX={_INDEX}/{wheel} the scripts under runs/ do it)"
        )
    return f"{name} (driver {driver or 'unknown'}): {reason}; {way_out}; or hide the GPU with CUDA_VISIBLE_DEVICES="


def _card() -> tuple[str, str] | None:
    """Name and driver of the first GPU, by its own tool, which needs no torch; None if none is there or seen."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1"):
        return None
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        told = subprocess.run(command, capture_output=True, check=True, timeout=60).stdout.decode(errors="replace")
    except (OSError, subprocess.SubprocessError):
        return None
    name, _, driver = (told.splitlines() or [""])[0].rpartition(",")
    return (name.strip(), driver.strip()) if name else None


def _why_not() -> tuple[str | None, tuple[int, int] | None]:
    """Why torch cannot compute on the first GPU (None: it can), and the GPU's capability if torch knows it."""
    try:
        import torch
    except Exception as error:  # a broken installation may raise anything
        reason = " ".join(str(error).split())
        return f"torch cannot be imported ({type(error).__name__}: {reason})", None

    release = f"torch {torch.__version__}"
    if torch.version.cuda is None:
        return f"{release} is built without CUDA", None
    if not torch.cuda.is_available():
        return f"{release} finds no usable driver for CUDA {torch.version.cuda}", None
    capability = torch.cuda.get_device_capability(0)
    architecture = f"sm_{capability[0]}{capability[1]}"
    if not _has_code_for(capability, torch.cuda.get_arch_list()):
        return f"{release} has no code for {architecture}", capability
    try:
        total = (torch.ones(3, device="cuda") + 1).sum().item()
    except RuntimeError as error:
        return f"{release} cannot run a kernel on {architecture} ({str(error).splitlines()[0]})", capability
    return (None if total == 6 else f"{release} computes wrongly on {architecture}"), capability


def _has_code_for(capability: tuple[int, int], built_for: list[str]) -> bool:
    """Code for a GPU runs on later ones of its generation too, and ``compute_`` is compiled for all later ones."""
    for name in built_for:
        kind, digits = name.split("_")
        number = re.match(r"\d+", digits)
        if number is None:
            continue
        major, minor = divmod(int(number[0]), 10)
        if kind == "compute" and (major, minor) <= capability:
            return True
        if kind == "sm" and major == capability[0] and minor <= capability[1]:
            return True
    return False


def main() -> int:
    """Print the fault, if there is one, and return the exit code."""
    found = fault()
    if found is not None:
        print(f"bnb_ds: error: {found}", file=sys.stderr)
    return 0 if found is None else EXIT_USER_ERROR


if __name__ == "__main__":
    sys.exit(main())
