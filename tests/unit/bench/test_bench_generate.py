"""``bnb-ds bench generate``: the systems do the same work, and the command shows the figures."""

from __future__ import annotations

import gzip
import json
import re
import sys
from dataclasses import replace

import pytest
import torch

from bnb_ds.bench.generation import reference_style as bench
from bnb_ds.bench.generation.contenders import CONTENDERS, cache_bytes, contender, contender_config, write_exactly
from bnb_ds.bench.generation.nar_contenders import NAR_CONTENDERS, nar_contender, write_lengths
from bnb_ds.bench.generation.sources import read_sources
from bnb_ds.bench.generation.workloads import Workload, of_references
from bnb_ds.bench.measure import interleaved
from bnb_ds.cli import main
from bnb_ds.errors import DataError
from bnb_ds.tasks.codec import Codec

CPU = torch.device("cpu")
SETTING = bench.Setting("tiny", 90, "fp32", CPU, 1)
QUESTIONS = [f"what is the value of number {'and so on ' * (i % 5)}{i}?" for i in range(9)]


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


@pytest.fixture
def squad(tmp_path):
    """SQuAD rows with answers and passages of growing length."""
    paragraphs = [
        {
            "context": f"the text {i} " + "says more of it " * i,
            "qas": [{"id": str(i), "question": question, "answers": [{"text": f"text {i}", "answer_start": 4}]}],
        }
        for i, question in enumerate(QUESTIONS)
    ]
    path = tmp_path / "squad.json"
    path.write_text(json.dumps({"data": [{"title": "t", "paragraphs": paragraphs}]}))
    return path


@pytest.mark.parametrize("name", CONTENDERS)
def test_every_baseline_writes_as_many_tokens_as_the_reference(name, squad, small_tokenizer):
    codec = Codec(small_tokenizer, small_tokenizer)
    workload = of_references(squad, None, codec, None, {})
    model = contender(name, SETTING, codec)
    questions = [small_tokenizer(question, add_special_tokens=False)["input_ids"] for question in QUESTIONS]
    for num_beams in (1, 3):
        outputs = write_exactly(model, workload.rows, workload.output_tokens, num_beams)
        assert [len(output) for output in outputs] == [len(ids) for ids in reversed(questions)]
        assert len({len(output) for output in outputs}) > 1


def test_baselines_have_the_sizes_of_their_papers(small_tokenizer):
    codec = Codec(small_tokenizer, small_tokenizer)
    configs = {name: contender_config(name, "base", codec) for name in CONTENDERS}
    for name, layers in (("bert2bert", 12), ("deep-shallow", 1)):
        halves = configs[name].encoder, configs[name].decoder
        assert [(half.num_hidden_layers, half.hidden_size) for half in halves] == [(12, 768), (layers, 768)]
    for name, width in (("transformer", 512), ("bart", 768)):
        config = configs[name]
        assert (config.encoder_layers, config.decoder_layers, config.d_model) == (6, 6, width)
        assert config.decoder_ffn_dim == 4 * width


@pytest.mark.parametrize("name", NAR_CONTENDERS)
def test_non_autoregressive_models_write_the_lengths_of_references(name, small_tokenizer, other_tokenizer):
    model = nar_contender(name, SETTING, Codec(other_tokenizer, small_tokenizer))
    assert model.config.encoder.num_hidden_layers == (2 if name == "encoder-ctc" else 1)
    outputs = write_lengths(model, [[2, 5, 3], [2, 3]], [7, 2])
    if name == "encoder-ctc":  # lengths are its own
        assert all(len(output) <= slots for output, slots in zip(outputs, (6, 4), strict=True))
    else:
        assert [len(output) for output in outputs] == [7, 2]


def test_bnb_may_have_halves_of_other_depths():
    model = bench.bnb_model(replace(SETTING, encoder_layers=3, decoder_layers=1))
    assert (len(model.model.encoder.layer), len(model.model.decoder.layer)) == (3, 1)


def test_the_cache_is_that_of_all_hypotheses(small_tokenizer):
    model = contender("deep-shallow", SETTING, Codec(small_tokenizer, small_tokenizer))
    # keys and values, 1 layer, 64 wide, 2 x 3 hypotheses of 3 source and 4 output tokens, 4 bytes
    assert cache_bytes(model, [[2, 5, 3], [2, 3]], [4, 2], 3) == 2 * 1 * 64 * 6 * (3 + 4) * 4


def test_ways_take_turns_and_a_first_round_is_not_counted():
    order = []
    ways = {name: lambda name=name: order.append(name) for name in "ab"}
    timings = interleaved(ways, CPU, 1)
    assert order == ["a", "b", "a", "b"]
    assert timings.keys() == ways.keys()


def test_batches_are_sorted_and_spread_over_the_sources():
    workload = Workload("x", [[5] * n for n in (1, 4, 2, 5, 3)], [10, 40, 20, 50, 30], {})
    assert [lengths for _, lengths in workload.batches(2, None)] == [[50, 40], [30, 20], [10]]
    assert [lengths for _, lengths in workload.batches(2, 9)] == [[50, 40], [30, 20]]
    assert [lengths for _, lengths in workload.batches(1, 2)] == [[40], [20]]


def test_pairs_are_read_from_each_form(tmp_path, squad, small_tokenizer):
    codec = Codec(small_tokenizer, small_tokenizer)
    sep = small_tokenizer.sep_token_id
    found = of_references(squad, None, codec, 3, {})
    assert [row.count(sep) for row in found.rows] == [2, 2, 2]  # answer [SEP] passage
    (tmp_path / "a.en").write_text("some text\nmore of the text\n\n")
    (tmp_path / "a.de").write_text("and the text\nthe same\n\n")
    (tmp_path / "a.jsonl").write_text(
        json.dumps({"source": ["more of", "the text"], "target": ["the same", "another that is longer"]})
        + "\n"
        + json.dumps({"document": "some text", "summary": "and the text"})
        + "\n"
    )
    both = of_references(tmp_path / "a.en", tmp_path / "a.de", codec, None, {})
    rows = of_references(tmp_path / "a.jsonl", None, codec, None, {})
    assert [small_tokenizer.decode(row[1:-1]) for row in both.rows] == ["more of the text", "some text"]
    assert (both.rows, both.output_tokens, both.slots_needed) == (rows.rows, rows.output_tokens, rows.slots_needed)
    assert [length + 1 for length in both.output_tokens] == both.slots_needed


def test_slots_that_a_reference_needs_count_repeats(tmp_path, small_tokenizer):
    (tmp_path / "a.en").write_text("text\n")
    (tmp_path / "a.de").write_text("the the the text\n")
    codec = Codec(small_tokenizer, small_tokenizer)
    workload = of_references(tmp_path / "a.en", tmp_path / "a.de", codec, None, {})
    model = bench.bnb_model(SETTING, decoder_length_ratio=2.0)
    assert workload.slots_needed == [workload.output_tokens[0] + 1 + 2]
    assert workload.summary(model.config)["references_that_fit"] == int(2 * len(workload.rows[0]) >= 8)


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


def damaged(data: bytes) -> bytes:
    """Compressed data that raise zlib.error."""
    return data[:10] + b"\xff" * 30 + data[40:]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("cut.txt.gz", gzip.compress(b"some text\n" * 99)[:-12], r"cannot be read \(EOFError: .*\); give SQuAD JSON"),
        ("bad.txt.gz", damaged(gzip.compress(b"some text\n" * 99)), r"cannot be read \(error: Error -3 while decom"),
        (
            "no.txt.gz",
            b"text",
            r"cannot be read \(BadGzipFile: Not a gzipped file .*\); give SQuAD JSON, JSON lines or",
        ),
        ("a.jsonl", b'{"body": "x"}\n', r"cannot be read \(KeyError: .*a row has none of the fields source, text, doc"),
        ("a.jsonl", b"[1]\n", r"cannot be read \(KeyError: "),
        ("a.json", b"{", r"cannot be read \(JSONDecodeError: "),
        ("empty.txt", b" \n", "holds no text; give SQuAD JSON, JSON lines or text"),
    ],
    ids=["cut gzip", "damaged gzip", "no gzip", "no field", "no object", "no JSON", "empty"],
)
def test_sources_that_cannot_be_read(tmp_path, small_tokenizer, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"--data .*{name}: {message}"):
        read_sources(tmp_path / name, small_tokenizer, 3)
    with pytest.raises(DataError, match=r"absent: cannot be read \(No such file or directory\); give SQuAD JSON"):
        read_sources(tmp_path / "absent", small_tokenizer, 3)


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
    shallow = ["--decoder-layers", "1", "--hidden-size", "128"]
    assert main([*common, *shallow, "--against", "bert2bert", *flags, *files, "--overwrite"]) == 0
    shown = capsys.readouterr().out
    assert "size tiny, decoder_layers 1, hidden_size 128, engine torch" in shown
    assert "| 9 random tokens -> 4 | 32 | 9.0 (9) | 4.0 (4) | 6.0 (6) | min 6, max 6 | - |" in shown
    result = json.loads((tmp_path / "r.json").read_text())["results"][0]
    assert result["cells"].keys() == {"bnb", "bert2bert"}


def test_the_shape_of_bnb_alone(capsys):
    shape = bench.Setting("tiny", 90, "fp32", CPU, 1, hidden_size=128, encoder_layers=3, decoder_layers=1)
    config = bench.bnb_model(shape).config
    assert (config.encoder.hidden_size, config.encoder.num_attention_heads) == (128, 2)
    assert (config.encoder.num_hidden_layers, config.decoder.num_hidden_layers) == (3, 1)
    with pytest.raises(SystemExit, match="2"):
        main(["bench", "generate", "--against", "bart", "--hidden-size", "100"])
    assert "argument --hidden-size: a multiple of 64 is required, not 100" in capsys.readouterr().err


@pytest.mark.slow
def test_all_systems_are_measured_on_the_same_pairs(tmp_path, squad, small_tokenizer, capsys, threads):
    small_tokenizer.save_pretrained(tmp_path / "tokenizer")
    command = ["bench", "generate", "--against", "all", "--size", "tiny", "--repeats", "2", "--threads", "1"]
    command += ["--data", str(squad), "--tokenizer", f"{tmp_path}/tokenizer", "--whole", "--limit", "inf"]
    command += ["--decoder-min", "40"]
    command += ["--batch-size", "4", "2", "--beams", "1", "2", "--json", f"{tmp_path}/r.json"]
    assert main([*command, "--png", f"{tmp_path}/r.png"]) == 0
    captured = capsys.readouterr()
    assert "parameters: bnb " in captured.out
    assert captured.err.splitlines() == ["measured: squad.json, batch 2", "measured: squad.json, batch 4"]
    assert "| ratio 2.0, min 40, max 512 | 9 of 9 |" in captured.out
    results = json.loads((tmp_path / "r.json").read_text())["results"]
    ways = ["bnb", *CONTENDERS, *NAR_CONTENDERS, *(f"{name}, beam 2" for name in ("bnb", *CONTENDERS))]
    lengths = [len(small_tokenizer(question)["input_ids"]) - 1 for question in QUESTIONS]
    for result, batch_size, num_batches in zip(results, (2, 4), (5, 3), strict=True):
        assert (result["batch_size"], result["num_batches"], result["num_sources"]) == (batch_size, num_batches, 9)
        assert result["output_tokens"] == {"mean": sum(lengths) / 9, "max": max(lengths)}
        assert list(result["cells"]) == ways
        for name, cell in result["cells"].items():
            assert cell["whole_set_seconds"] == pytest.approx(9 * cell["seconds_per_sentence"])
            assert cell["sentences_per_second"] == pytest.approx(1 / cell["seconds_per_sentence"])
            assert 0 < cell["p50_seconds"] <= cell["p95_seconds"]
            ours = result["cells"]["bnb"]["seconds_per_sentence"]
            if name != "bnb":
                assert cell["bnb_faster_wall"] == pytest.approx(cell["seconds_per_sentence"] / ours)
    assert (tmp_path / "r.png").read_bytes()[:4] == b"\x89PNG"


def test_what_takes_too_long_is_said_and_left_out(tmp_path, capsys, threads, monkeypatch):
    command = ["bench", "generate", "--against", "bart", "--size", "tiny", "--repeats", "1", "--threads", "1"]
    command += ["--batch-size", "1", "2", "--output-tokens", "4", "--source-tokens", "9"]
    assert main([*command, "--limit", "1e-9", "--json", f"{tmp_path}/r.json", "--png", f"{tmp_path}/r.png"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"\| 2 \| bart \| skipped: would take about \d+ s, above the limit of 1e-09 s \| - \|", shown)
    cells = json.loads((tmp_path / "r.json").read_text())["results"][1]["cells"]
    assert all(cell.keys() == {"skipped"} for cell in cells.values())
    monkeypatch.setattr("bnb_ds.bench.generation.latency._free_bytes", lambda device: 2**10)
    assert main([*command, "--limit", "inf"]) == 0
    shown = capsys.readouterr().out
    assert "| 1 | bart | skipped: its cache takes about 0 GiB, 0 GiB are free | - |" in shown
    assert "| 1 | bnb | skipped" not in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--against", "bert2bert", "--dtype", "int8"], "--engine torch --dtype int8: int8 needs --engine onnx, which"),
        (["--against", "bert2bert", "--engine", "onnx", "--dtype", "bf16"], "--engine onnx --dtype bf16: int8 needs"),
        (["--against", "reference-style"], "needs real texts: give --data and --tokenizer"),
        (["--against", "bert2bert", "--json", "/nowhere/x"], "--json /nowhere/x: there is no directory /nowhere"),
        (["--against", "bert2bert", "--source-tokens", "513"], "--source-tokens 513: give at most 512"),
        (["--against", "bert2bert", "--output-tokens", "500"], "--output-tokens 500: give at most 512 decoder slots"),
        (["--against", "bert2bert", "--output-tokens", "9", "--slots-per-token", "0"], "--slots-per-token 0.0: give"),
        (["--against", "bert2bert", "--limit", "nan"], "--limit nan: give a number of seconds above 0"),
        (["--against", "bert2bert", "--png", "/nowhere/x"], "--png /nowhere/x: there is no directory /nowhere"),
        (["--against", "all", "--whole"], "--whole: needs real texts: give --data and --tokenizer"),
        (["--against", "all", "--tokenizer", "x"], "--data and --tokenizer go together: give both, or neither"),
        (["--against", "all", "reference-style"], "--against reference-style: cannot be combined with other systems"),
        (
            ["--against", "all", "--decoder-min", "9", "--decoder-max", "8"],
            "--decoder-max 8: give at least --decoder-min 9",
        ),
        (
            ["--against", "all", "--decoder-min", "513"],
            "--decoder-min 513: give at most 512, the number of decoder positions",
        ),
        (
            ["--against", "all", "--data", "x", "--num-sources", "9", "--batch-size", "128"],
            "--batch-size 128: give at most --num-sources 9",
        ),
        (
            ["--against", "all", "--data", "x", "--whole", "--output-tokens", "9"],
            "--whole: the references give the lengths",
        ),
        (
            ["--against", "all", "--data", "x", "--references", "y", "--output-tokens", "9"],
            "--references: the references give the",
        ),
        (["--against", "all", "--data", "/nowhere.jsonl"], "/nowhere.jsonl: cannot be read (No such file"),
        (["--against", "all", "--data", "{tmp}/a.jsonl"], "a.jsonl: line 1: has none of the fields source, document"),
        (["--against", "all", "--data", "{tmp}/b.jsonl"], "b.jsonl: holds 1 pairs of source and reference; lower"),
        (["--against", "all", "--data", "{tmp}/a.en"], "a.en: plain lines have no references; give --references"),
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
    for name, text in (
        ("empty", "\n\n"),
        ("a.json", "{}"),
        ("a.jsonl", '{"x": 1}\n'),
        ("b.jsonl", '{"text": "a", "target": "b"}\n'),
        ("a.en", "a\n"),
    ):
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
    assert '--png needs matplotlib: pip install ".[plot]" in the checkout' in capsys.readouterr().err
