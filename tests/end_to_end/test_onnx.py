"""The ONNX graph gives the same outputs in ONNX Runtime as the model in torch."""

from __future__ import annotations

import gzip
import sys

import numpy as np
import pytest

from bnb_ds.cli import main
from bnb_ds.decoding.options import DecodeOptions
from bnb_ds.generate.engines import OnnxEngine, TorchEngine
from bnb_ds.generate.open_model import load_exported
from bnb_ds.generate.pipeline import BnbPipeline
from bnb_ds.tasks.codec import Codec
from bnb_ds.tasks.spacing import Spacing
from tests.exports import MAX_TOKENS, save_model, save_task_model
from tests.tiny import ENCODER_ALONE

for _package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(_package, reason=f"the optional package {_package} is not installed")

POLICIES = {
    "ratio": {"decoder_length_ratio": 1.3, "decoder_length_offset": 1, "deep_supervision": True},
    "padded": {"decoder_length": "padded"},
}


@pytest.fixture(scope="module", params=POLICIES)
def pair(request, small_tokenizer, tmp_path_factory):
    """An exported model, and its ONNX form."""
    folder = tmp_path_factory.mktemp("onnx")
    save_model(folder / "model", small_tokenizer, **POLICIES[request.param])
    assert main(["export", str(folder / "model"), str(folder / "onnx"), "--format", "onnx"]) == 0
    return folder / "model", folder / "onnx"


@pytest.mark.slow
def test_tokens_are_the_same_at_every_length_and_batch(pair):
    model = load_exported(pair[0])
    rng = np.random.default_rng(0)
    rows = [[2, *rng.integers(5, 500, size).tolist(), 3] for size in (1, 5, MAX_TOKENS - 2, 17, 17, 30, 2)]
    engine = OnnxEngine(pair[1], num_threads=1)
    for budget in (1, 150, 10_000):
        options = DecodeOptions(token_budget=budget)
        assert engine.decode(rows, options) == TorchEngine(model).decode(rows, options)


@pytest.mark.slow
def test_an_encoder_alone_in_onnxruntime(small_tokenizer, tmp_path):
    save_model(tmp_path / "model", small_tokenizer, **ENCODER_ALONE, decoder_length_ratio=2.0)
    assert main(["export", str(tmp_path / "model"), str(tmp_path / "onnx"), "--format", "onnx"]) == 0
    rng = np.random.default_rng(0)
    rows = [[2, *rng.integers(5, 500, size).tolist(), 3] for size in (1, 5, MAX_TOKENS // 2 - 2, 17, 2)]
    engine, model = OnnxEngine(tmp_path / "onnx", num_threads=1), load_exported(tmp_path / "model")
    for budget in (1, 10_000):
        options = DecodeOptions(token_budget=budget)
        assert engine.decode(rows, options) == TorchEngine(model).decode(rows, options)


@pytest.mark.slow
def test_graphs_are_walked_in_onnxruntime(small_tokenizer, tmp_path, capsys):
    fields = {"target": "dag", "decoder_length_ratio": 2.5, "decoder_tokens": True, "mask_token_id": 4}
    save_model(tmp_path / "model", small_tokenizer, **fields)
    assert main(["export", str(tmp_path / "model"), str(tmp_path / "onnx"), "--format", "onnx"]) == 0
    model, engine = load_exported(tmp_path / "model"), OnnxEngine(tmp_path / "onnx", num_threads=1)
    rng = np.random.default_rng(0)
    rows = [[2, *rng.integers(5, 500, size).tolist(), 3] for size in (1, 5, MAX_TOKENS - 2, 17, 30, 2)]
    for budget in (1, 10_000):
        for how in ({}, {"strategy": "greedy"}, {"strategy": "lookahead", "lookahead_beta": 0.3}):
            options = DecodeOptions(token_budget=budget, **how)
            engine.check(options, with_scores=False)
            assert engine.decode(rows, options) == TorchEngine(model).decode(rows, options)
    (tmp_path / "in").write_text("some text\n")
    arguments = ["generate", str(tmp_path / "onnx"), "--input", str(tmp_path / "in"), "--output", str(tmp_path / "o")]
    assert main([*arguments, "--strategy", "viterbi"]) == 2
    assert "an ONNX model decodes a graph by greedy or lookahead, without scores or limits" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_line_takes_it(pair, tmp_path, capsys):
    (tmp_path / "in").write_text("some text\n\nmore of it\n")
    for directory in pair:
        arguments = ["generate", str(directory), "--input", str(tmp_path / "in")]
        assert main([*arguments, "--output", str(tmp_path / directory.name)]) == 0
    assert (tmp_path / "onnx").read_bytes() == (tmp_path / "model").read_bytes()
    assert "(ONNX Runtime on cpu)" in capsys.readouterr().err
    assert main([*arguments, "--output", str(tmp_path / "o"), "--beam-size", "2"]) == 2
    assert "an ONNX model only decodes greedily, without scores or limits" in capsys.readouterr().err
    assert main([*arguments, "--output", str(tmp_path / "o"), "--dtype", "bf16"]) == 2
    assert "leave out --dtype, --device and --compile" in capsys.readouterr().err
    (pair[1] / "model.onnx").rename(tmp_path / "kept")
    (pair[1] / "model.onnx").write_bytes(b"no graph")
    assert main([*arguments, "--output", str(tmp_path / "o")]) == 2
    assert "model.onnx: cannot be read" in capsys.readouterr().err
    (tmp_path / "kept").rename(pair[1] / "model.onnx")


@pytest.mark.slow
def test_int8_differs_in_few_tokens_of_a_confident_model(small_tokenizer, tmp_path):
    from rapidfuzz.distance import Levenshtein

    # As in a trained model, the logits are far apart. Only the rounding to 8 bits remains as a difference.
    save_model(tmp_path / "model", small_tokenizer)
    assert main(["export", str(tmp_path / "model"), str(tmp_path / "int8"), "--format", "onnx", "--dtype", "int8"]) == 0
    texts = [" ".join(str(i * j % 97) for j in range(8)) for i in range(40)]
    plain = BnbPipeline.from_pretrained(tmp_path / "model", device="cpu")
    outputs = [pipeline.generate(texts) for pipeline in (plain, BnbPipeline.from_pretrained(tmp_path / "int8"))]
    pairs = list(zip(*([output.tokens for output in side] for side in outputs), strict=True))
    distance = sum(Levenshtein.distance(*tokens) for tokens in pairs)
    assert 0 < distance < 0.5 * sum(len(tokens) for tokens, _ in pairs)


@pytest.mark.slow
def test_1000_real_sources(pair, shared_data):
    with gzip.open(shared_data / "translation" / "multi30k" / "test_2016_flickr.en.gz", "rt") as file:
        texts = [line.strip() for line in file]
    assert len(texts) == 1000
    ours = BnbPipeline.from_pretrained(pair[0], device="cpu").generate(texts)
    theirs = BnbPipeline.from_pretrained(pair[1]).generate(texts)
    assert [output.tokens for output in ours] == [output.tokens for output in theirs]
    assert len({tuple(output.tokens) for output in ours}) > 900


@pytest.mark.slow
def test_a_fine_tuned_model_keeps_its_tokenizers_and_its_lengths(
    small_tokenizer, other_tokenizer, small_texts, tmp_path
):
    texts = [text.swapcase() for text in small_texts]
    codec = Codec(small_tokenizer, other_tokenizer, Spacing.learn(other_tokenizer, texts))
    model = save_task_model(tmp_path / "model", "translation", codec)
    assert main(["export", str(model), str(tmp_path / "onnx"), "--format", "onnx"]) == 0
    sources = [*small_texts[:9], "[SEP] the [MASK]", ""]
    torch, onnx = (BnbPipeline.from_pretrained(path, device="cpu") for path in (model, tmp_path / "onnx"))
    assert onnx.encode(sources) == torch.encode(sources)
    assert onnx(sources) == torch(sources)
    card = (tmp_path / "onnx" / "README.md").read_text()
    assert "`tokenizer.json` reads sources. `target_tokenizer/tokenizer.json` writes outputs." in card
    assert "print(pipeline(['A text for source.']))" in card


@pytest.mark.parametrize(
    ("arguments", "missing", "message"),
    [
        (["--format", "onnx"], "onnxscript", 'needs the package onnxscript: pip install ".[onnx]" in the checkout'),
        (["--format", "onnx", "--encoder"], None, "--encoder: an ONNX graph is always the whole model"),
        (["--dtype", "int8"], None, "--dtype int8 needs --format onnx"),
    ],
)
def test_what_cannot_work_is_one_line(small_tokenizer, tmp_path, capsys, monkeypatch, arguments, missing, message):
    save_model(tmp_path / "model", small_tokenizer)
    if missing:
        monkeypatch.setitem(sys.modules, missing, None)
    assert main(["export", str(tmp_path / "model"), str(tmp_path / "onnx"), *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "onnx").exists()


def test_a_model_of_labels_has_no_graph(small_tokenizer, tmp_path, capsys):
    save_task_model(tmp_path / "model", "sst2", Codec(small_tokenizer, small_tokenizer))
    assert main(["export", str(tmp_path / "model"), str(tmp_path / "onnx"), "--format", "onnx"]) == 2
    assert "model: was fine-tuned for sst2, which has labels; use `bnb-ds predict`" in capsys.readouterr().err


def test_length_classification_and_a_missing_runtime(small_tokenizer, tmp_path, capsys, monkeypatch):
    save_model(tmp_path / "model", small_tokenizer, decoder_length="predicted")
    assert main(["export", str(tmp_path / "model"), str(tmp_path / "onnx"), "--format", "onnx"]) == 2
    assert "only models with decoder_length 'source' can be compiled or exported to ONNX" in capsys.readouterr().err
    (tmp_path / "model" / "model.onnx").touch()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main(["generate", str(tmp_path / "model"), "--input", __file__, "--output", str(tmp_path / "o")]) == 2
    assert 'an ONNX model needs onnxruntime: pip install ".[onnx]" in the checkout' in capsys.readouterr().err
