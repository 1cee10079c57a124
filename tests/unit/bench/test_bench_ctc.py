"""``bnb-ds bench ctc``: the four ways do the same work, and the command shows the figures."""

from __future__ import annotations

import argparse
import json

import pytest
import torch

from bnb_ds.bench.ctc import WAYS, Case, Shape
from bnb_ds.bench.measure import interleaved_seconds, peak_bytes
from bnb_ds.cli import main

SMALL = Shape(3, 24, 5, 211, 8)
CPU = torch.device("cpu")


@pytest.mark.parametrize("shape", [SMALL, Shape(2, 12, 12, 40, 4)], ids=str)
def test_the_ways_have_equal_losses(shape):
    case = Case(shape, CPU, torch.float32, kl_weight=0.0)
    losses = [run().item() for run in (case.fused, case.torch_way, case.reference)]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)


def test_the_kl_terms_agree_up_to_the_constant_that_torchs_way_leaves_out():
    with_kl, without = Case(SMALL, CPU, torch.float32, 0.5), Case(SMALL, CPU, torch.float32, 0.0)
    fused, reference = with_kl.fused() - without.fused(), with_kl.reference() - without.reference()
    assert fused.item() == pytest.approx(reference.item(), rel=1e-3)
    torch_way = with_kl.torch_way() - without.torch_way()
    assert torch_way.item() - fused.item() == pytest.approx(0.5 * torch.tensor(211.0).log().item(), rel=1e-4)


def test_a_ragged_case_has_short_and_long_sequences_and_each_target_fits():
    case = Case(Shape(8, 64, 8, 50, 4, ragged=True), CPU, torch.float32, 0.1)
    lengths = case.layout.lengths
    assert lengths.min() < lengths.max() == 64
    assert (case.target_lengths <= lengths // 8).all()
    case.fused()


def test_the_fused_way_needs_less_memory():
    case = Case(Shape(8, 256, 16, 2000, 16), CPU, torch.float32, 0.1)
    for way, factor in ((case.torch_way, 1.5), (case.reference, 2)):
        assert peak_bytes(way, CPU) > factor * peak_bytes(case.fused, CPU)


def test_peak_memory_is_that_of_the_tensors_alive_together():
    def run():
        first = torch.zeros(1000)
        del first
        second = torch.zeros(2000)
        return second + 1

    assert 16_000 <= peak_bytes(run, CPU) < 17_000


def test_ways_take_turns():
    order = []
    seconds = interleaved_seconds({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, CPU, repeats=2)
    assert order == ["a", "b"] * 3
    assert set(seconds) == {"a", "b"}


def test_the_command_prints_a_table_and_writes_json(tmp_path, capsys):
    file = tmp_path / "ctc.json"
    threads = torch.get_num_threads()
    try:
        shapes = ["--shape", "2,16,3,60,4", "--shape", "2,16,2,60,4,ragged"]
        assert main(["bench", "ctc", *shapes, "--repeats", "1", "--json", str(file)]) == 0
    finally:
        torch.set_num_threads(threads)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("device CPU, 2 threads, dtype fp32, kl_weight 0.1, repeats 1, torch ")
    assert [line.split(" | ")[0] for line in lines[3:]] == ["| B2 T16 S3 V60 H4", "| B2 T16 S2 V60 H4 ragged"]
    figures = json.loads(file.read_text())
    assert [result["shape"]["ragged"] for result in figures["results"]] == [False, True]
    assert all(result[what].keys() == set(WAYS) for result in figures["results"] for what in ("seconds", "peak_bytes"))
    assert all(value > 0 for result in figures["results"] for value in result["peak_bytes"].values())


@pytest.mark.parametrize("text", ["1,2", "2,4,5,9,3", "1,2,1,1,3", "a,b,c,d,e", "0,2,1,9,3", "1,2,1,9,3,dense"])
def test_a_wrong_shape_is_refused(text):
    with pytest.raises(
        argparse.ArgumentTypeError, match=f"'{text}' is not a shape: give B,T,S,V,H or B,T,S,V,H,ragged"
    ):
        Shape.parse(text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--json", "/nowhere/x.json"], "--json /nowhere/x.json: there is no directory /nowhere: make it first"),
        (["--device", "cuda"], "--device cuda: torch sees no GPU here: use --device cpu"),
    ],
)
def test_what_cannot_work_is_refused_before_measuring(arguments, message, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["bench", "ctc", *arguments]) == 2
    assert capsys.readouterr().err == f"bnb-ds: error: {message}\n"


def test_misuse_of_a_number_exits_with_2(capsys):
    with pytest.raises(SystemExit):
        main(["bench", "ctc", "--repeats", "0"])
    assert "a positive whole number is required, not 0" in capsys.readouterr().err
