"""More tokens, or fewer: the old tokens keep their outputs, and the new ones can be written, saved and trained."""

from __future__ import annotations

import pytest
import torch

from bnb_ds.errors import ConfigError
from bnb_ds.model.classification import BnbEncoderModel, BnbForSequenceClassification
from bnb_ds.modeling import BnbForConditionalGeneration, BnbForPretraining, BnbModel
from tests.tiny import ENCODER_ALONE, VOCAB, bnb_config, bnb_model, packed_form, padded_form, source_ids

INPUTS = padded_form(source_ids([7, 3, 10]))
KINDS = {
    "ctc": {},
    "ctc-absolute": {"decoder_positions": "absolute", "decoder_length_ratio": 1.0},
    "token": {"decoder_length": "predicted"},
    "dag": {"target": "dag", "link_positions": 64},
    "dag-tokens": {"target": "dag", "link_positions": 64, "decoder_tokens": True, "mask_token_id": 4},
    "tied": {"tie_encoder_decoder": True},
    "encoder alone": ENCODER_ALONE,
}


@pytest.fixture(params=KINDS)
def fields(request):
    return KINDS[request.param]


@pytest.mark.parametrize("size", [VOCAB + 6, VOCAB - 9])
def test_the_tokens_that_stay_keep_their_logits(fields, size):
    model = bnb_model(dtype=torch.float32, **fields)
    kept = min(size, VOCAB)
    inputs = {**INPUTS, "input_ids": INPUTS["input_ids"].clamp(max=kept - 1)}
    before = model(**inputs).logits
    embeddings = model.resize_token_embeddings(size)
    assert embeddings is model.get_input_embeddings()
    for words in (embeddings, model.get_output_embeddings()):
        assert (words.num_embeddings, len(words.weight)) == (size, size)
    assert model.lm_head.bias.shape == (size,)
    assert (model.config.encoder.vocab_size, model.config.decoder.vocab_size, model.config.vocab_size) == (size,) * 3
    after = model(**inputs).logits
    assert after.shape[-1] == size
    torch.testing.assert_close(after[..., :kept], before[..., :kept])


def test_a_resized_model_writes_new_tokens_and_is_saved_and_loaded(fields, tmp_path):
    model = bnb_model(dtype=torch.float32, **fields)
    new = VOCAB + 2
    model.resize_token_embeddings(VOCAB + 4)
    with torch.no_grad():
        model.lm_head.bias[new] = 50.0
    assert new in model.generate(**INPUTS)
    inputs = {**INPUTS, "input_ids": INPUTS["input_ids"].clone()}
    inputs["input_ids"][:, 0] = new
    model.save_pretrained(tmp_path)
    loaded, info = BnbForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
    shared = loaded.get_input_embeddings().weight is loaded.get_output_embeddings().weight
    assert shared == (loaded.config.tie_encoder_decoder or not loaded.config.has_decoder)
    targets = [torch.tensor([2, new, 5, 3])] * 3
    model(**packed_form(source_ids([7, 3, 10]), targets)).loss.backward()
    assert model.lm_head.bias.grad[new] != 0
    for parameter in (model.lm_head.bias, model.get_input_embeddings().weight, model.get_output_embeddings().weight):
        assert parameter.grad.shape == parameter.shape


def test_one_vocabulary_of_two(tmp_path):
    model = bnb_model(dtype=torch.float32, decoder={"vocab_size": 41})
    with pytest.raises(ConfigError, match="have 53 and 41 tokens: resize one after the other, with half='source'"):
        model.resize_token_embeddings(60)
    before = model(**INPUTS).logits
    model.resize_token_embeddings(60, half="source")
    assert torch.equal(model(**INPUTS).logits, before)
    model.resize_token_embeddings(44, half="target")
    assert (model.config.encoder.vocab_size, model.config.decoder.vocab_size) == (60, 44)
    torch.testing.assert_close(model(**INPUTS).logits[..., :41], before)
    model.save_pretrained(tmp_path)
    loaded = BnbForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(loaded(**INPUTS).logits, model(**INPUTS).logits)


@pytest.mark.parametrize("kind", [BnbModel, BnbForPretraining, BnbEncoderModel, BnbForSequenceClassification])
def test_every_class_has_it(kind, tmp_path):
    model = kind(bnb_config()).eval()
    model.resize_token_embeddings(pad_to_multiple_of=16)
    assert model.config.encoder.vocab_size == model.config.decoder.vocab_size == 64
    if kind is BnbForPretraining:
        assert model.encoder_mlm_head.bias.shape == model.lm_head.bias.shape == (64,)
    model.save_pretrained(tmp_path)
    loaded, info = kind.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    ids = torch.tensor([[60, 63, 5]])
    model(input_ids=ids)
    for name, weight in loaded.state_dict().items():
        assert torch.equal(weight, model.state_dict()[name]), name


@pytest.mark.parametrize("as_mean", [True, False])
def test_new_rows_begin_as_asked(as_mean):
    model = bnb_model(dtype=torch.float32)
    old = model.get_output_embeddings().weight.detach().clone()
    mean = model.lm_head.bias.mean().item()
    model.resize_token_embeddings(VOCAB + 8, mean_resizing=as_mean)
    new = model.get_output_embeddings().weight[VOCAB:]
    assert torch.allclose(new, old.mean(0), atol=1e-3) == as_mean
    torch.testing.assert_close(model.lm_head.bias[VOCAB:], torch.full((8,), mean if as_mean else 0.0))


def test_what_cannot_be_is_one_line():
    model = bnb_model(blank_token_id=50)
    embeddings = model.get_input_embeddings()
    assert model.resize_token_embeddings() is embeddings
    for size, half, message in (
        (40, "both", "blank_token_id is 50: 40 tokens would lose it; keep at least 51"),
        (60, "decoder", "half is 'decoder': give one of: both, source, target"),
    ):
        with pytest.raises(ConfigError, match=message):
            model.resize_token_embeddings(size, half=half)
    assert model.config.encoder.vocab_size == VOCAB
    assert embeddings.num_embeddings == VOCAB, "nothing was changed before the refusal"
    with pytest.raises(ConfigError, match="half is 'source', but the halves of this model share their embeddings"):
        bnb_model(tie_encoder_decoder=True).resize_token_embeddings(60, half="source")
    with pytest.raises(ConfigError, match="half is 'target': give one of: both, source"):
        BnbEncoderModel(bnb_config()).resize_token_embeddings(60, half="target")


def test_other_output_embeddings():
    model = bnb_model(dtype=torch.float32)
    words = torch.nn.Embedding(VOCAB, 12)
    model.set_output_embeddings(words)
    assert model.get_output_embeddings() is words
    assert model(**INPUTS).logits.shape[-1] == VOCAB
