"""The Triton kernels of graphs without a GPU: run by Triton's interpreter, and compiled by Triton's own compiler."""

from __future__ import annotations

import pytest

from tests import compiled

SIZES = {"batch_size": "i32", "num_slots": "i32", "stride_B": "i32", "stride_L": "i32"}
TARGETS = {"last_slot": "*i64", "last_step": "*i64"}


def floats(*names: str) -> dict[str, str]:
    return dict.fromkeys(names, "*fp32:16")


KERNELS = {
    "forward_kernel": floats("emissions", "links", "ways", "shifts"),
    "backward_kernel": floats("emissions", "links", "ahead"),
    "links_kernel": floats("links", "ways", "shifts", "incoming", "taken"),
    "best_kernel": {**floats("emissions", "links", "scores"), "before": "*i32"},
    "back_kernel": {**floats("scores", "log_prob"), "before": "*i32", "path": "*i64"},
}


@pytest.fixture(scope="module")
def triton():
    return compiled.need_triton()


def test_kernels_in_the_interpreter():
    compiled.run_interpreted("tests/interpreted/dag_kernels.py")


@pytest.mark.parametrize("capability", compiled.CAPABILITIES)
@pytest.mark.parametrize("name", KERNELS)
def test_kernels_compile_without_spills(triton, name, capability, tmp_path):
    from bnb_ds.dag import triton as dag_triton

    kernel, options = getattr(dag_triton, name), dag_triton._OPTIONS
    types = {**KERNELS[name], **TARGETS, **SIZES}
    types = {argument: kind for argument, kind in types.items() if argument in kernel.arg_names}
    constants = {"TILE": options["TILE"]} if "TILE" in kernel.arg_names else {}
    num_warps = options["num_warps"] if constants else 1
    ptx = compiled.compiled(kernel, types, constants, capability, num_warps, num_stages=options["num_stages"])
    assert f".target sm_{capability}" in ptx
    assert compiled.spilled_bytes(ptx, tmp_path) == 0
    assert "cp.async" not in ptx  # nothing is fetched ahead of a barrier
    if name in ("forward_kernel", "backward_kernel", "best_kernel"):
        # What one step wrote, other threads read at the next. The interpreter is serial and cannot show a race.
        assert "bar.sync" in ptx or "barrier.sync" in ptx


def test_sizes_are_not_specialised(triton):
    from bnb_ds.dag import triton as dag_triton

    for name in KERNELS:
        kernel = getattr(dag_triton, name)
        assert all(
            kernel.params[kernel.arg_names.index(size)].do_not_specialize for size in SIZES if size in kernel.arg_names
        )
