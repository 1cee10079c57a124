"""Directories of the reference implementation: what is read from them, and the messages for unusable ones."""

from __future__ import annotations

import os
import pickle

import pytest
import torch
from transformers import AutoTokenizer

from bnb_ds.cli import main
from bnb_ds.errors import CheckpointError, ConfigError
from bnb_ds.export.import_reference import import_reference
from bnb_ds.model.classification import BnbForSequenceClassification
from bnb_ds.modeling import BnbForConditionalGeneration
from tests.reference_files import save_as_reference, their_weights
from tests.tiny import bnb_model, padded_form, source_ids

BATCH = padded_form(source_ids([7, 1, 10]))


@pytest.mark.parametrize("binary", [False, True])
def test_halves_of_different_size_with_a_projection_between(tmp_path, binary):
    decoder = {"hidden_size": 15, "vocab_size": 31, "num_hidden_layers": 1, "intermediate_size": 18}
    model = bnb_model(dtype=torch.float32, decoder=decoder, decoder_length="padded")
    save_as_reference(model, tmp_path, binary=binary)
    loaded = BnbForConditionalGeneration.from_reference(tmp_path)
    assert loaded.config.decoder_length == "padded"
    assert (loaded.config.latent_dropout, loaded.config.loss_reduction, loaded.training) == (0.1, "sample", False)
    assert torch.equal(loaded(**BATCH).logits, model(**BATCH).logits)


def test_a_vae_has_the_mean_of_its_latents(tmp_path):
    """The reference takes z = mu when it does not train; the other half of its latent is the log variance."""
    model = bnb_model(dtype=torch.float32, decoder_length="padded")
    weights = their_weights(model)
    weights["encoder.linear.weight"][5:] = 7.0
    weights["encoder.linear.bias"][5:] = -3.0
    save_as_reference(model, tmp_path / "theirs", weights, is_vae=True)
    loaded = BnbForConditionalGeneration.from_reference(tmp_path / "theirs")
    assert torch.equal(loaded(**BATCH).logits, model(**BATCH).logits)
    notes = import_reference(tmp_path / "theirs", tmp_path / "ours")
    assert notes[0].startswith(f"note: {tmp_path / 'theirs'} was trained with is_vae true; {tmp_path / 'ours'} has the")
    assert "(z = mu)" in notes[0]
    save_as_reference(model, tmp_path / "plain")
    assert not any("is_vae" in note for note in import_reference(tmp_path / "plain", tmp_path / "other"))


def test_the_second_bias_of_a_binary_file_is_the_one_in_use(tmp_path):
    model = bnb_model(dtype=torch.float32)
    weights = their_weights(model)
    weights["decoder.cls.predictions.decoder.bias"] = weights["decoder.cls.predictions.bias"] + 1
    save_as_reference(model, tmp_path, weights, binary=True)
    bias = BnbForConditionalGeneration.from_reference(tmp_path).lm_head.bias
    assert torch.equal(bias, model.lm_head.bias + 1)


def test_overrides(tmp_path):
    save_as_reference(bnb_model(dtype=torch.float32), tmp_path)
    model = BnbForConditionalGeneration.from_reference(tmp_path, decoder_length="predicted", kl_weight=0.2)
    assert (model.config.decoder_length, model.config.loss_reduction, model.config.kl_weight) == (
        "predicted",
        "token",
        0.2,
    )
    for name, message in (
        ("latent_sise", "has no setting 'latent_sise'"),
        ("latent_size", "the checkpoint decides it"),
    ):
        with pytest.raises(ConfigError, match=message):
            BnbForConditionalGeneration.from_reference(tmp_path, **{name: 3})


def test_all_faults_of_the_weights_are_named_at_once(tmp_path):
    model = bnb_model(dtype=torch.float32)
    weights = their_weights(model)
    del weights["decoder.linear.bias"]
    weights["encoder.linear.weight"] = weights["encoder.linear.weight"][:5].clone()
    weights["decoder.length.weight"] = torch.zeros(2)
    save_as_reference(model, tmp_path, weights)
    with pytest.raises(CheckpointError) as error:
        BnbForConditionalGeneration.from_reference(tmp_path)
    for part in (
        "model.safetensors: does not fit its config.json: ",
        "decoder.linear.bias is missing",
        "encoder.linear.weight has shape [5, 12], not [10, 12]",
        "decoder.length.weight is unknown",
    ):
        assert part in str(error.value)


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harmed",)


def test_a_binary_file_never_runs_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_as_reference(bnb_model(dtype=torch.float32), tmp_path / "model", {"a": Harmful()}, binary=True)
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin: cannot be read as tensors: "):
        BnbForConditionalGeneration.from_reference("model")
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize("content", [b"", b"not a file of weights", pickle.dumps([1])])
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_damaged_weights(tmp_path, name, content):
    save_as_reference(bnb_model(dtype=torch.float32), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{name}: cannot be read as tensors: "):
        BnbForConditionalGeneration.from_reference(tmp_path)


def test_a_binary_file_that_holds_something_else(tmp_path):
    save_as_reference(bnb_model(dtype=torch.float32), tmp_path, {"model": {"a": torch.zeros(1)}}, binary=True)
    with pytest.raises(CheckpointError, match="holds something other than a dictionary of tensors"):
        BnbForConditionalGeneration.from_reference(tmp_path)


def test_no_weights_at_all(tmp_path):
    save_as_reference(bnb_model(dtype=torch.float32), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"holds neither model.safetensors nor pytorch_model.bin"):
        BnbForConditionalGeneration.from_reference(tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"decoder": {"latent_size": 9}}, "latent_size is 5 in the encoder and 9 in the decoder"),
        ({"encoder": {}}, "not the configuration of a BERT-NAR-BERT of the reference: KeyError 'latent_size'"),
        ({"encoder": None}, "not the configuration of a BERT-NAR-BERT of the reference: TypeError"),
    ],
)
def test_other_configurations(tmp_path, config, message):
    save_as_reference(bnb_model(dtype=torch.float32), tmp_path, **config)
    with pytest.raises(CheckpointError, match=message):
        BnbForConditionalGeneration.from_reference(tmp_path)


def test_no_directory(tmp_path):
    with pytest.raises(CheckpointError, match=r"config.json: no such file; give a directory"):
        BnbForConditionalGeneration.from_reference(tmp_path / "absent")


def test_the_command_writes_a_model_that_generates(tmp_path, small_tokenizer, capsys):
    vocab_size = len(small_tokenizer)
    model = bnb_model(dtype=torch.float32, encoder={"vocab_size": vocab_size}, decoder={"vocab_size": vocab_size})
    save_as_reference(model, tmp_path / "theirs")
    small_tokenizer.save_pretrained(tmp_path / "theirs")
    command = ["import-reference", str(tmp_path / "theirs"), str(tmp_path / "ours"), "--decoder-length", "source"]
    assert main(command) == 0
    assert "import-reference: " in capsys.readouterr().out
    loaded = BnbForConditionalGeneration.from_pretrained(tmp_path / "ours")
    assert (loaded.config.decoder_length, loaded.config.decoder_length_ratio) == ("source", 1.0)
    assert AutoTokenizer.from_pretrained(tmp_path / "ours").vocab_size == vocab_size
    text = tmp_path / "in.txt"
    text.write_text("a line of text\n")
    arguments = [str(tmp_path / "ours"), "--input", str(text), "--output", str(tmp_path / "out.txt")]
    assert main(["generate", *arguments]) == 0
    # A second call overwrites nothing.
    assert main(command) == 2
    assert "ours: already exists; remove it or choose another output" in capsys.readouterr().err


def test_the_command_refuses_another_tokenizer(tmp_path, small_tokenizer, capsys):
    save_as_reference(bnb_model(dtype=torch.float32), tmp_path / "theirs")
    small_tokenizer.save_pretrained(tmp_path / "tokenizer")
    tokenizer = ["--tokenizer", str(tmp_path / "tokenizer")]
    assert main(["import-reference", str(tmp_path / "theirs"), str(tmp_path / "ours"), *tokenizer]) == 2
    assert f"has {len(small_tokenizer)} tokens, but the model's encoder has 53; give the" in capsys.readouterr().err
    assert not (tmp_path / "ours").exists()
    assert main(["import-reference", str(tmp_path / "theirs"), str(tmp_path / "ours")]) == 0
    assert "holds no tokenizer" in capsys.readouterr().err


@pytest.mark.parametrize("binary", [False, True])
def test_berts_pooler_is_kept_for_a_classifier(tmp_path, binary):
    model = bnb_model(dtype=torch.float32)
    hidden = model.config.encoder.hidden_size
    weight, bias = torch.randn(hidden, hidden), torch.randn(hidden)
    pooler = {"encoder.pooler.dense.weight": weight, "encoder.pooler.dense.bias": bias}
    save_as_reference(model, tmp_path / "theirs", their_weights(model) | pooler, binary=binary)
    notes = import_reference(tmp_path / "theirs", tmp_path / "ours")
    assert not any("pooler.dense" in note for note in notes)
    classifier = BnbForSequenceClassification.from_pretrained(tmp_path / "ours", num_labels=2)
    assert torch.equal(classifier.pooler.dense.weight, weight)
    assert torch.equal(classifier.pooler.dense.bias, bias)
    _, info = BnbForConditionalGeneration.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]


def test_a_pooler_that_is_not_whole_is_told(tmp_path):
    model = bnb_model(dtype=torch.float32)
    save_as_reference(model, tmp_path / "theirs")  # its bias alone
    notes = import_reference(tmp_path / "theirs", tmp_path / "ours")
    expected = f"note: encoder.pooler.dense of {tmp_path / 'theirs'} is no whole pooler and is left out; a classifier"
    assert [note.startswith(expected) for note in notes if "pooler.dense" in note] == [True]
    weights = {name: weight for name, weight in their_weights(model).items() if "pooler" not in name}
    save_as_reference(model, tmp_path / "none", weights)
    assert not any("pooler.dense" in note for note in import_reference(tmp_path / "none", tmp_path / "other"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_act": "nope"}, r"config.json: encoder.hidden_act 'nope': no such activation; known: "),
        (
            {"num_attention_heads": 5},
            r"config.json: cannot be read as a configuration of a BERT-NAR-BERT: The hidden size .* \(5\)",
        ),
        ({"hidden_size": "12"}, r"config.json: .*'hidden_size'.*"),
        ({"vocab_size": None}, r"config.json: .*'vocab_size'.*"),
    ],
)
def test_a_value_that_no_bert_can_have_is_one_line(tmp_path, fields, message):
    model = bnb_model(dtype=torch.float32)
    encoder = {**model.config.encoder.to_dict(), "latent_size": model.config.latent_size, **fields}
    save_as_reference(model, tmp_path, encoder=encoder)
    with pytest.raises(CheckpointError, match=message):
        BnbForConditionalGeneration.from_reference(tmp_path)
