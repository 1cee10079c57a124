"""Generation for the lines of a file: order, bad lines, shares, and resuming stopped runs."""

from __future__ import annotations

import io
import json
import logging
import shutil
import sys

import pytest
from safetensors.torch import load_file, save_file

from bnb_ds.cli import main
from bnb_ds.common.line_files import input_identity, read_lines, share_of_file
from bnb_ds.data.tokenization import load_tokenizer
from bnb_ds.errors import ConfigError, DataError
from bnb_ds.export.onnx import export_onnx
from bnb_ds.generate.pipeline import BnbPipeline
from bnb_ds.generate.processes import join
from data_prep.sources.documents import Document
from data_prep.tokenise.vocab import train_vocabulary
from tests.exports import MAX_TOKENS, save_model
from tests.shard_building import build_shards

pytestmark = pytest.mark.slow

ODD = ["", "  ", "word " * 500, "[MASK] [SEP] [CLS]", "\ufffd\u200b", "a\u2028b", "\x00", "x" * 5000]


@pytest.fixture(scope="module")
def exported(small_tokenizer, tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("exported") / "model", small_tokenizer)


@pytest.fixture(scope="module")
def lines(small_texts) -> list[str]:
    texts = [text[: 5 + 7 * (i % 23)] for i, text in enumerate(small_texts[:60])]
    return [line for i, text in enumerate(texts) for line in ([text, ODD[i % len(ODD)]] if i % 5 == 0 else [text])]


@pytest.fixture(scope="module")
def source(lines, tmp_path_factory):
    path = tmp_path_factory.mktemp("lines") / "in.txt"
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def whole(exported, source, tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "out.txt"
    assert generate(exported, source, path, "--window", "7") == 0
    return path.read_bytes()


def generate(model, source, target, *arguments: str) -> int:
    return main(["generate", str(model), "--input", str(source), "--output", str(target), *arguments])


def test_one_line_for_each_in_order(exported, lines, whole):
    pipeline = BnbPipeline.from_pretrained(exported)
    written = whole.decode().split("\n")
    assert len(written) == len(lines) + 1
    assert written[:-1] == [pipeline(line) for line in lines]
    assert len(set(written)) > 40
    assert all(not written[i] for i, line in enumerate(lines) if not line.strip())


@pytest.mark.parametrize("arguments", [["--window", "1"], ["--token-budget", "60"], []], ids=" ".join)
def test_windows_and_budgets_change_nothing(exported, source, whole, arguments, tmp_path):
    assert generate(exported, source, tmp_path / "o", *arguments) == 0
    assert (tmp_path / "o").read_bytes() == whole


@pytest.mark.parametrize("count", [2, 5])
def test_tasks_share_a_file_out(exported, source, whole, count, tmp_path):
    for index in range(count):
        assert generate(exported, source, tmp_path / "o", "--num-tasks", str(count), "--task-index", str(index)) == 0
    parts = sorted(tmp_path.glob(f"o.?????-of-{count:05d}"))
    assert len(parts) == count
    assert join(parts, tmp_path / "o") == whole.count(b"\n")
    assert (tmp_path / "o").read_bytes() == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["o"]


def test_shares_of_a_file_hold_every_line_once():
    content = b"a\n\n" + b"long line " * 30 + b"\nb\nlast without end"
    for count in range(1, 40):
        found = []
        for index in range(count):
            file = io.BytesIO(content)
            found += [line.text for line in read_lines(file, *share_of_file(file, index, count))]
        assert found == content.decode().split("\n")


def test_a_line_without_end_is_read_in_bounded_memory(monkeypatch):
    monkeypatch.setattr("bnb_ds.common.line_files.MAX_LINE_BYTES", 10)
    content = b"x" * 37 + b"\n" + "ääääääää\n".encode() + b"123456789\n1234567890\nbad\xff\n"
    found = list(read_lines(io.BytesIO(content)))
    assert [line.text for line in found] == ["x" * 10, "ä" * 5, "123456789", "1234567890", "bad\ufffd"]
    assert [line.is_cut for line in found] == [True, True, False, True, False]
    assert [line.is_damaged for line in found] == [False, False, False, False, True]
    assert [line.end for line in found] == [38, 55, 65, 76, 81]


class Stop(Exception):
    pass


def interrupted(exported, source, target, monkeypatch, windows: int, *arguments: str) -> None:
    """Run a job that fails after this number of windows."""
    plain, calls = BnbPipeline.generate, []

    def failing(self, texts, **options):
        calls.append(texts)
        if len(calls) > windows:
            raise Stop
        return plain(self, texts, **options)

    with monkeypatch.context() as patch:
        patch.setattr(BnbPipeline, "generate", failing)
        with pytest.raises(Stop):
            generate(exported, source, target, "--window", "7", *arguments)


def test_a_run_stopped_twice_gives_the_output_of_one(exported, source, whole, tmp_path, monkeypatch, capsys):
    target = tmp_path / "o"
    interrupted(exported, source, target, monkeypatch, 3)
    assert not target.exists()
    with open(tmp_path / "o.partial", "ab") as file:
        file.write(b"half a window that was not synced\n")
    interrupted(exported, source, target, monkeypatch, 2, "--resume")
    state = json.loads((tmp_path / "o.progress.json").read_text())
    assert state["counts"]["lines"] == 35
    assert generate(exported, source, target, "--window", "7", "--resume") == 0
    assert target.read_bytes() == whole
    said = capsys.readouterr().err
    assert f"{whole.count(bytes([10]))} lines from" in said


def test_refinement_is_resumed_as_it_began(source, small_tokenizer, tmp_path, monkeypatch, capsys):
    model = save_model(tmp_path / "model", small_tokenizer, decoder_tokens=True, mask_token_id=4)
    flags = ["--window", "7", "--refinement", "2"]
    assert generate(model, source, tmp_path / "plain", "--window", "7") == 0
    assert generate(model, source, tmp_path / "whole", *flags) == 0
    assert (tmp_path / "whole").read_bytes() != (tmp_path / "plain").read_bytes()
    interrupted(model, source, tmp_path / "o", monkeypatch, 2, "--refinement", "2")
    assert generate(model, source, tmp_path / "o", "--window", "7", "--refinement", "1", "--resume") == 2
    assert "is of a run with other settings (options): give the same" in capsys.readouterr().err
    assert generate(model, source, tmp_path / "o", *flags, "--resume") == 0
    assert (tmp_path / "o").read_bytes() == (tmp_path / "whole").read_bytes()


def test_a_finished_output_is_left_alone_by_resume(exported, source, whole, tmp_path, monkeypatch):
    target = tmp_path / "o"
    assert generate(exported, source, target, "--window", "7") == 0
    monkeypatch.setattr(BnbPipeline, "generate", None)
    assert generate(exported, source, target, "--window", "7", "--resume") == 0
    assert target.read_bytes() == whole


def test_what_is_cut_empty_or_damaged_is_said(exported, tmp_path, capsys):
    (tmp_path / "in").write_bytes(b"word " * 500 + b"\n\nna\xefve\nshort\n")
    assert generate(exported, tmp_path / "in", tmp_path / "o") == 0
    said = capsys.readouterr().err
    assert "generate: 4 lines from" in said
    assert " sentences/s (torch fp32 on cpu)" in said
    for part in ("1 empty", f"1 cut to the model's {MAX_TOKENS} tokens", "1 not valid UTF-8, read with replacement"):
        assert part in said
    assert (tmp_path / "o").read_text().count("\n") == 4


def test_streams(exported, whole, source, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(source.read_bytes())))
    assert generate(exported, "-", "-") == 0
    assert capsys.readouterr().out.encode() == whole


def test_limits_and_beams_reach_the_model(exported, source, whole, tmp_path):
    flags = ["--beam-size", "3", "--max-length", "4", "--bad-word", "the", "--no-repeat-ngram-size", "1"]
    assert generate(exported, source, tmp_path / "o", *flags) == 0
    outputs = (tmp_path / "o").read_text()
    assert outputs.encode() != whole
    words = [line.split() for line in outputs.splitlines()]
    assert all("the" not in line and len(line) <= 4 for line in words)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-tasks", "2", "--task-index", "2"], "--task-index 2: give 0 to 1, below --num-tasks"),
        (
            ["--num-tasks", "2", "--output", "-"],
            "--num-tasks above 1 divides a file: give file names for --input and --output, not -",
        ),
        (
            ["--resume", "--input", "-"],
            "--resume needs seekable files: give file names for --input and --output, not -",
        ),
        (["--processes", "2", "--num-tasks", "2"], "give either --processes or --num-tasks"),
        (["--dtype", "fp16", "--device", "cpu"], "--dtype fp16 needs a GPU: use bf16 or fp32 on a CPU"),
        (["--dtype", "int8"], "--dtype int8 needs ONNX Runtime: run `bnb-ds export"),
        (["--device", "cuda:99"], "--device cuda:99: torch sees"),
        (["--device", "tpu"], "--device tpu: give cpu, cuda or cuda:1"),
        (["--device", "meta"], "--device meta: give cpu, cuda or cuda:1"),
        (["--compile", "--beam-size", "2"], "a compiled model only decodes greedily, without scores or limits"),
        (["--length-beam", "2"], "with CTC use beam_size"),
        (["--refinement", "1"], "refinement is 1: its passes show tokens to the decoder, and this model was"),
        (["--input", "/nowhere"], "--input /nowhere: cannot be read"),
        (["--output", "/nowhere/o"], "--output /nowhere/o: there is no directory /nowhere: make it first"),
    ],
)
def test_what_cannot_work_is_one_line(exported, source, tmp_path, capsys, arguments, message):
    assert generate(exported, source, tmp_path / "o", *arguments) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_an_unfinished_output_is_not_overwritten_nor_mixed(exported, source, tmp_path, monkeypatch, capsys):
    target = tmp_path / "o"
    interrupted(exported, source, target, monkeypatch, 3)
    before = (tmp_path / "o.partial").read_bytes()
    cases = [
        ([], "an earlier run left this unfinished: add --resume to go on, or --overwrite to begin again"),
        (["--window", "8", "--resume"], "is of a run with other settings (window): give the same, or remove that"),
        (["--window", "7", "--resume", "--beam-size", "2"], "is of a run with other settings (options): give the same"),
    ]
    for arguments, message in cases:
        assert generate(exported, source, target, *arguments) == 2
        assert message in capsys.readouterr().err
    source_2 = tmp_path / "in2"
    source_2.write_bytes(source.read_bytes() + b"one more\n")
    assert generate(exported, source_2, target, "--window", "7", "--resume") == 2
    assert "other settings (input)" in capsys.readouterr().err
    assert (tmp_path / "o.partial").read_bytes() == before
    (tmp_path / "o.partial").write_bytes(before[:-5])
    assert generate(exported, source, target, "--window", "7", "--resume") == 2
    assert "remove both and start again" in capsys.readouterr().err
    for damaged in ("{", '{"settings": 5}', '{"settings": {}, "input_offset": "x"}', '{"settings": {}, "counts": {}}'):
        (tmp_path / "o.progress.json").write_text(damaged)
        assert generate(exported, source, target, "--window", "7", "--resume") == 2
        assert "o.progress.json: cannot be read" in capsys.readouterr().err


def test_two_runs_do_not_write_one_output(exported, source, tmp_path, monkeypatch, capsys):
    target = tmp_path / "o"
    plain, codes = BnbPipeline.generate, []

    def inner(self, texts, **options):
        with monkeypatch.context() as patch:
            patch.setattr(BnbPipeline, "generate", plain)
            codes.append(generate(exported, source, target))
        return plain(self, texts, **options)

    with monkeypatch.context() as patch:
        patch.setattr(BnbPipeline, "generate", inner)
        assert generate(exported, source, target) == 0
    assert codes == [2]
    assert "another process is writing it: wait for it, or choose another output" in capsys.readouterr().err


def test_joining_says_what_the_disk_refuses(tmp_path):
    with pytest.raises(DataError, match="cannot write"):
        join([tmp_path / "missing"], tmp_path / "o")
    assert not list(tmp_path.iterdir())


def test_an_input_that_fails_at_its_beginning_is_one_line():
    class Unread(io.BytesIO):
        def read(self, size=-1):
            raise OSError(5, "Input/output error")

    with pytest.raises(DataError, match=r"--input a: cannot be read \(Input/output error\); give a text file or -"):
        input_identity("a", Unread())


def test_bf16_on_a_cpu_without_it_is_said(exported, source, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("bnb_ds.generate.engines.has_bf16", lambda device: False)
    assert generate(exported, source, tmp_path / "o", "--dtype", "bf16") == 0
    assert "(torch bf16 on cpu, which has no bf16 instructions: fp32 is faster here)" in capsys.readouterr().err


@pytest.fixture
def damaged(exported, tmp_path):
    """A copy of the model, to be damaged."""
    return shutil.copytree(exported, tmp_path / "model")


def test_a_missing_weight_is_one_line(damaged, source, tmp_path, monkeypatch, capsys, caplog):
    """The report of transformers on missing weights is not shown."""
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    weights = load_file(damaged / "model.safetensors")
    del weights["lm_head.bias"]
    save_file(weights, damaged / "model.safetensors", metadata={"format": "pt"})
    assert generate(damaged, source, tmp_path / "o") == 2
    said = capsys.readouterr().err
    assert said == f"bnb-ds: error: {damaged}: lacks weights such as lm_head.bias; export it again\n"
    assert not caplog.records


def test_a_damaged_file_of_weights_is_one_line(damaged, source, tmp_path, capsys):
    (damaged / "model.safetensors").write_bytes(b"no weights")
    assert generate(damaged, source, tmp_path / "o") == 2
    said = capsys.readouterr().err
    assert f"{damaged}: cannot be read as a BERT-NAR-BERT model: " in said
    assert said.endswith("; restore it, or name another\n")
    assert said.count("\n") == 1


def test_unknown_precisions(exported, tmp_path):
    """The command line offers only the known dtypes; from Python any can be given."""
    with pytest.raises(ConfigError, match="--dtype fp8: give one of: fp32, bf16, fp16"):
        BnbPipeline.from_pretrained(exported, device="cpu", dtype="fp8")
    with pytest.raises(ConfigError, match="--dtype bf16: with --format onnx give one of: fp32, int8"):
        export_onnx(exported, tmp_path / "onnx", dtype="bf16")
    assert not list(tmp_path.iterdir())


def test_shards_that_cannot_be_reconstructed(exported, small_texts, small_tokenizer, tmp_path, capsys):
    documents = [Document(str(i), text, "") for i, text in enumerate(small_texts[:20])]
    train_vocabulary(documents, tmp_path / "tokenizer", vocab_size=400)
    build_shards(documents, tmp_path / "other", load_tokenizer(tmp_path / "tokenizer"), sources=[], holdout=0.2)
    build_shards(documents, tmp_path / "whole", small_tokenizer, sources=[], holdout=0.0)
    for name, message in (
        ("other", f"other: was made with another tokenizer than {exported}; give the shards of its training"),
        ("whole", "whole: holds no held-out documents; prepare it with another --holdout"),
    ):
        assert main(["reconstruct", str(exported), "--shards", str(tmp_path / name)]) == 2
        assert message in capsys.readouterr().err
