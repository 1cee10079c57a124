"""``bnb-ds bench dag``: the three ways do the same work, and the command shows it."""

from __future__ import annotations

import json

import pytest
import torch

from bnb_ds.bench.dag import WAYS, Case, Shape
from bnb_ds.bench.measure import peak_bytes
from bnb_ds.cli import main

CPU = torch.device("cpu")


@pytest.mark.parametrize("shape", [Shape(3, 24, 5, 211, 8), Shape(2, 12, 12, 40, 4, sure=True)], ids=str)
def test_fused_and_naive_have_equal_losses_and_gradients(shape):
    case = Case(shape, CPU, torch.float32)
    leaves = (case.hidden, case.weight, case.bias, case.log_links)
    results = []
    for way in (case.fused, case.naive):
        gradients = []
        hooks = [leaf.register_hook(lambda gradient, to=gradients: to.append(gradient.clone())) for leaf in leaves]
        results.append((way(), sorted(gradients, key=lambda gradient: tuple(gradient.shape))))
        for hook in hooks:
            hook.remove()
    (loss, ours), (expected, theirs) = results
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


def test_a_sure_case_has_one_path_for_each_target():
    fresh, sure = (Case(Shape(2, 30, 6, 80, 32, is_sure), CPU, torch.float32).fused() for is_sure in (False, True))
    assert sure < 0.1 < fresh


def test_the_fused_way_needs_a_fraction_of_the_memory():
    case = Case(Shape(8, 256, 16, 8000, 16), CPU, torch.float32)
    assert peak_bytes(case.naive, CPU) > 8 * peak_bytes(case.fused, CPU)


@pytest.mark.parametrize("text", ["8,4,5,10,4", "8,4,1,10,4", "8,4,2,10", "8,4,2,x,4", "0,4,2,10,4", "1,4,2,10,4,glad"])
def test_a_wrong_shape_is_refused(text, capsys):
    with pytest.raises(SystemExit):
        main(["bench", "dag", "--shape", text])
    assert f"'{text}' is no shape: give B,L,S,V,H or B,L,S,V,H,sure with 2 <= S <= L" in capsys.readouterr().err


def test_the_command_prints_a_table_and_writes_json(tmp_path, capsys):
    file = tmp_path / "dag.json"
    threads = torch.get_num_threads()
    try:
        shapes = ["--shape", "2,16,3,60,4", "--shape", "2,16,2,60,4,sure"]
        assert main(["bench", "dag", *shapes, "--repeats", "1", "--json", str(file)]) == 0
    finally:
        torch.set_num_threads(threads)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("device CPU, 2 threads, dtype fp32, repeats 1, torch ")
    assert [line.split(" | ")[0] for line in lines[3:]] == ["| B2 L16 S3 V60 H4", "| B2 L16 S2 V60 H4 sure"]
    figures = json.loads(file.read_text())
    assert [result["shape"]["sure"] for result in figures["results"]] == [False, True]
    assert all(result[what].keys() == set(WAYS) for result in figures["results"] for what in ("seconds", "peak_bytes"))
    assert all(value > 0 for result in figures["results"] for value in result["peak_bytes"].values())
