"""``bnb-ds bench generate``: the systems do the same work, and the command shows it."""

from __future__ import annotations

import gzip
import json
import sys

import pytest
import torch

from bnb_ds.bench import generate as bench
from bnb_ds.bench.sources import read_sources
from bnb_ds.cli import main

SETTING = bench.Setting("tiny", 90, "fp32", torch.device("cpu"), 1)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_reference_style_is_the_model_on_512_positions_and_full_logits():
    model = bench.bnb_model(SETTING, decoder_length_ratio=0.5)
    rows = [[2, *range(5, 5 + size), 3] for size in (3, 40)]
    found = bench.reference_style(model, rows)
    assert model.config.decoder_length == "source"
    with bench.policy_of(model, {"decoder_length": "padded"}):
        assert bench.ours(model, rows) == found
    assert found != bench.ours(model, rows)


def test_the_autoregressive_model_writes_as_many_tokens_as_asked():
    model = bench.bert2bert(SETTING, decoder_layers=1)
    ids = torch.randint(5, 90, (2, 11))
    assert bench.write_tokens(model, ids, 7).shape == (2, 8)
    assert len(model.decoder.bert.encoder.layer) == 1


def test_ways_take_turns_and_a_first_round_is_not_counted():
    order = []
    ways = {name: lambda name=name: order.append(name) for name in "ab"}
    timings = bench.interleaved(ways, SETTING)
    assert order == ["a", "b", "a", "b"]
    assert timings.keys() == ways.keys()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json.gz", json.dumps({"data": [{"paragraphs": [{"context": f"text {i}"} for i in range(9)]}]})),
        ("a.jsonl", "".join(json.dumps({"source": ["text", str(i)]}) + "\n" for i in range(9))),
        ("a.txt.gz", "".join(f"text {i}\n" for i in range(9))),
        ("a.en", "".join(f"text {i}\n\n" for i in range(9))),
    ],
)
def test_sources_are_spread_over_a_file(tmp_path, small_tokenizer, name, text):
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    rows = read_sources(path, small_tokenizer, 3)
    assert [small_tokenizer.decode(row[1:-1]) for row in rows] == ["text 0", "text 3", "text 6"]
    assert all(len(row) == 3 for row in read_sources(path, small_tokenizer, 3, max_tokens=3))


def test_the_commands_print_write_and_draw(tmp_path, small_tokenizer, capsys, threads):
    small_tokenizer.save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "in.txt").write_text("some text here\nand some more of it\n")
    common = ["bench", "generate", "--size", "tiny", "--repeats", "1", "--threads", "1", "--batch-size", "2"]
    data = ["--data", f"{tmp_path}/in.txt", "--tokenizer", f"{tmp_path}/tokenizer", "--num-sources", "2"]
    files = ["--json", f"{tmp_path}/r.json", "--png", f"{tmp_path}/r.png"]
    assert main([*common, "--against", "reference-style", *data, *files]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith(
        "against reference-style, size tiny, engine torch, dtype fp32, device CPU, 1 threads, bf16_in_"
    )
    assert shown[3].startswith("| in.txt |")
    assert shown[3].endswith("| 2 of 2 | 2 of 2 |")
    result = json.loads((tmp_path / "r.json").read_text())["results"][0]
    assert result["timings"].keys() == {"ours", "reference-style"}
    assert (tmp_path / "r.png").read_bytes()[:4] == b"\x89PNG"
    flags = ["--output-tokens", "4", "--source-tokens", "9", "--slots-per-token", "1.5"]
    assert main([*common, "--against", "bert2bert", *flags, *files]) == 0
    assert capsys.readouterr().out.splitlines()[3].startswith("| 2 | 4 | 6 | ")
    result = json.loads((tmp_path / "r.json").read_text())["results"][0]
    assert result["timings"].keys() == {"ours", "bert2bert", "deep-shallow"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--against", "bert2bert", "--dtype", "int8"], "--engine torch --dtype int8: int8 needs onnx, which has"),
        (["--against", "bert2bert", "--engine", "onnx", "--dtype", "bf16"], "--engine onnx --dtype bf16: int8 needs"),
        (["--against", "reference-style"], "measures real texts: give --data and --tokenizer"),
        (["--against", "bert2bert", "--json", "/nowhere/x"], "--json /nowhere/x: there is no directory /nowhere"),
        (["--against", "bert2bert", "--source-tokens", "513"], "--source-tokens 513: give at most 512"),
        (["--against", "bert2bert", "--output-tokens", "500"], "--output-tokens 500: give at most 512 decoder slots"),
        (["--against", "bert2bert", "--device", "cuda"], "--device cuda: torch sees no GPU here: use --device cpu"),
        (["--against", "reference-style", "--data", "/nowhere"], "--data /nowhere: cannot be read (No such file"),
        (["--against", "reference-style", "--data", "{tmp}/empty"], "empty: holds no text; give SQuAD JSON"),
        (["--against", "reference-style", "--data", "{tmp}/a.json"], "a.json: cannot be read (KeyError: 'data')"),
        (["--against", "reference-style", "--data", "{tmp}/a.jsonl"], "a row has none of the fields"),
    ],
)
def test_what_cannot_work_is_one_line(arguments, message, small_tokenizer, tmp_path, capsys, monkeypatch, threads):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    small_tokenizer.save_pretrained(tmp_path / "tokenizer")
    for name, text in (("empty", "\n\n"), ("a.json", "{}"), ("a.jsonl", '{"x": 1}\n')):
        (tmp_path / name).write_text(text)
    arguments = [argument.format(tmp=tmp_path) for argument in arguments]
    if "--data" in arguments:
        arguments += ["--tokenizer", f"{tmp_path}/tokenizer"]
    assert main(["bench", "generate", *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_a_picture_needs_matplotlib(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["bench", "generate", "--against", "bert2bert", "--png", f"{tmp_path}/x.png"]) == 2
    assert "--png needs matplotlib: pip install bnb_ds[plot]" in capsys.readouterr().err
