"""The Triton kernels of CTC without a GPU: run by Triton's interpreter, and compiled by Triton's own compiler."""

from __future__ import annotations

import pytest

from tests import compiled

COUNTS = dict.fromkeys(("num_steps", "num_rows", "batch_size", "num_tokens", "num_states"), "i32")
#: types of the arguments, constants of compile time, warps; of the largest sizes that models have
KERNELS = {
    "forward_kernel": (
        {"emissions": "*fp32:16", "may_skip": "*i8", "start": "*i64", "blanks": "*fp32:16", "tokens": "*fp32:16"},
        {"LANES": 1024},
        8,
    ),
    "occupancy_kernel": (
        dict.fromkeys(("emissions", "blanks", "tokens", "occupancy", "total"), "*fp32:16"),
        {"LANES": 1024},
        8,
    ),
    "best_kernel": (
        {"emissions": "*fp32:16", "may_skip": "*i8", "back": "*u8", "score": "*fp32:16"},
        {"LANES": 1024},
        8,
    ),
    "back_kernel": ({"back": "*u8", "last": "*i64", "states": "*i64"}, {}, 1),
    "softmax_kernel": (
        {
            **dict.fromkeys(("logits", "bias", "own", "scale", "normalizer", "strength"), "*fp32:16"),
            "scaled": "*fp16:16",
            "rival": "*i64",
            "vocab_size": "i32",
            "stride": "i32:16",
        },
        {"BLOCK": 4096, "HAS_BIAS": True},
        8,
    ),
}


@pytest.fixture(scope="module")
def triton():
    return compiled.need_triton()


@pytest.mark.slow
def test_kernels_in_the_interpreter():
    compiled.run_interpreted("tests/interpreted/ctc_kernels.py")


@pytest.mark.parametrize("capability", compiled.CAPABILITIES)
@pytest.mark.parametrize("name", KERNELS)
def test_kernels_compile_without_spills(triton, name, capability, tmp_path):
    from bnb_ds.ctc import triton as ctc_triton

    kernel = getattr(ctc_triton, name)
    types, constants, num_warps = KERNELS[name]
    counts = {count: kind for count, kind in COUNTS.items() if count in kernel.arg_names}
    ptx = compiled.compiled(kernel, {**types, **counts}, constants, capability, num_warps)["ptx"]
    assert f".target sm_{capability}" in ptx
    assert compiled.spilled_bytes(ptx, tmp_path) == 0
    if name in ("forward_kernel", "best_kernel"):
        # Lanes of different warps exchange values. The interpreter is serial, so it cannot show races between them.
        assert "bar.sync" in ptx or "barrier.sync" in ptx
    if name == "softmax_kernel":
        assert "ld.global.v4" in ptx  # rows of a padded stride are read 16 bytes at a time


def test_lengths_and_counts_are_not_specialised(triton):
    """Otherwise each 1 and each multiple of 16 among the lengths of batches would compile a kernel anew."""
    from bnb_ds.ctc import triton as ctc_triton

    for name in KERNELS:
        kernel = getattr(ctc_triton, name)
        counts = [place for place, argument in enumerate(kernel.arg_names) if argument in COUNTS]
        assert all(kernel.params[place].do_not_specialize for place in counts), name
