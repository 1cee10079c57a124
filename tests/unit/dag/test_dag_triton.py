"""The Triton kernels of graphs without a GPU: run by Triton's interpreter, and compiled by Triton's own compiler."""

from __future__ import annotations

import pytest
import torch

from bnb_ds.dag import alignment, kernels, paths, viterbi
from bnb_ds.recurrences import cuda
from tests import compiled

SIZES = {"batch_size": "i32", "num_slots": "i32", "stride_B": "i32", "stride_L": "i32"}
TARGETS = {"last_slot": "*i64", "last_step": "*i64"}


def floats(*names: str) -> dict[str, str]:
    return dict.fromkeys(names, "*fp32:16")


KERNELS = {
    "forward_kernel": floats("emissions", "links", "ways", "shifts"),
    "backward_kernel": floats("emissions", "links", "ahead"),
    "links_kernel": floats("links", "ways", "shifts", "incoming", "taken"),
    "best_kernel": {**floats("emissions", "links", "scores"), "before": "*i32", "stride_S": "i32", "is_whole": "i32"},
    "back_kernel": {**floats("scores", "log_prob"), "before": "*i32", "path": "*i64"},
}


@pytest.fixture(scope="module")
def triton():
    return compiled.need_triton()


@pytest.mark.slow
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
    forms = compiled.compiled(kernel, types, constants, capability, num_warps, num_stages=options["num_stages"])
    ptx = forms["ptx"]
    assert f".target sm_{capability}" in ptx
    assert compiled.spilled_bytes(ptx, tmp_path) == 0
    assert "cp.async" not in ptx  # nothing is fetched ahead of a barrier,
    assert "ld.global.nc" not in ptx  # or from a cache that does not see what this kernel writes
    if name in ("forward_kernel", "backward_kernel", "best_kernel"):
        # What one step wrote, other threads read at the next. The interpreter is serial and cannot show a race.
        assert "barrier" in forms["ttgir"]
        assert "bar.sync" in ptx or "barrier.sync" in ptx


def test_sizes_are_not_specialised(triton):
    from bnb_ds.dag import triton as dag_triton

    for name in KERNELS:
        kernel = getattr(dag_triton, name)
        assert all(
            kernel.params[kernel.arg_names.index(size)].do_not_specialize for size in SIZES if size in kernel.arg_names
        )


def test_the_number_of_launches_does_not_grow_with_tokens(triton, monkeypatch):
    """On the meta device, where reading a number is an error; kernels are counted, not run."""
    from bnb_ds.dag import triton as dag_triton

    launched = []

    class Kernel:
        def __getitem__(self, grid):
            return lambda *args, **kwargs: launched.append(grid)

    for name in KERNELS:
        monkeypatch.setattr(dag_triton, name, Kernel())
    for module in (alignment, paths, viterbi):
        monkeypatch.setattr(module, "launch_of", lambda device, kernel: dag_triton.launch)
    counts = []
    for tokens in (3, 300):
        launched.clear()
        log_probs = torch.empty(2, 900, tokens, device="meta")
        links, lengths = torch.empty(2, 900, 900, device="meta"), torch.empty(2, dtype=torch.int64, device="meta")
        with compiled.Counted() as counted:
            alignment.nll_and_posteriors(log_probs, links, lengths, lengths)
            paths.best_path(alignment.Problem.of(log_probs, links, lengths, lengths))
            viterbi.viterbi(log_probs[..., 0], links, lengths, 1.0, 0, tokens)
        counts.append((counted.launches, len(launched)))
    assert counts[0] == counts[1]
    assert counts[0][1] == 7
    assert counts[0][0] < 120, counts


@pytest.mark.parametrize("is_compiled", [True, False])
def test_a_kernel_that_fails_is_passed_over_with_the_reason(triton, is_compiled, monkeypatch):
    """A GPU is only pretended; the trial of the best path goes well, and that of the alignment does not."""

    def fail(device):
        raise RuntimeError("Failed to find C compiler.")

    def fail_too(device):
        raise RuntimeError("no NVRTC")

    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "Tesla V100")
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (7, 0))
    monkeypatch.setattr(kernels, "_TRIALS", {"alignment": fail, "best path": lambda device: None})
    in_cuda = (lambda device: None) if is_compiled else fail_too
    monkeypatch.setattr(kernels, "_TRIALS_IN_CUDA", {"alignment": in_cuda, "best path": fail_too})
    kernels._choose.cache_clear()
    device = torch.device("cuda", 0)
    try:
        assert kernels.launch_of(device, "alignment") is (cuda.launch_of_graph if is_compiled else None)
        assert kernels.launch_of(device, "best path").__module__ == "bnb_ds.dag.triton"
        how = "in CUDA C++" if is_compiled else "on the host"
        more = "" if is_compiled else "; alignment: CUDA C++: RuntimeError: no NVRTC"
        assert kernels.description(device) == (
            f"DAG partly in Triton kernels: alignment {how} (Tesla V100: capability 7.0; alignment: "
            f"Triton {triton.__version__}: RuntimeError: Failed to find C compiler.{more})"
        )
    finally:
        kernels._choose.cache_clear()
    assert kernels.launch_of(torch.device("cpu"), "alignment") is None
    assert kernels.description(torch.device("cpu")) == "DAG in batched PyTorch (cpu)"
    kernels._choose.cache_clear()
