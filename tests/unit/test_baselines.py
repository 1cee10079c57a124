"""Baselines from transformers: every setting said, the same loss and outputs packed, padded, alone and reloaded."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from transformers import (
    AutoModelForSeq2SeqLM,
    BartConfig,
    BartForConditionalGeneration,
    BertForMaskedLM,
    OpenAIGPTConfig,
    OpenAIGPTModel,
)

from bnb_ds.baselines.build import build_autoregressive, build_classifier, load_autoregressive, load_classifier
from bnb_ds.baselines.seq2seq import BeamOptions
from bnb_ds.baselines.settings import BaselineSection
from bnb_ds.errors import CheckpointError, ConfigError, DataError
from bnb_ds.tokenization import tokenizer_from_vocabulary
from tests.tiny import VOCAB, bert_config, packed_form, pad_rows, source_ids

SIZE = {
    "hidden_size": 12,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 24,
}
START = {"bert2bert": 2, "tied": 2, "random": 2, "transformer": 2, "bart": 3}


def tokenizer(size: int = VOCAB):
    words = [f"w{i}" for i in range(size - 5)]
    return tokenizer_from_vocabulary(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words], lowercase=False)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, str]:
    """Hugging Face directories of a BERT, a BART and an OpenAI GPT."""
    torch.manual_seed(0)
    bart = BartConfig(
        vocab_size=VOCAB,
        d_model=12,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=3,
        decoder_attention_heads=3,
        encoder_ffn_dim=20,
        decoder_ffn_dim=20,
        max_position_embeddings=24,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
        decoder_start_token_id=3,
        init_std=0.2,
    )
    gpt = OpenAIGPTConfig(vocab_size=VOCAB - 2, n_positions=24, n_embd=12, n_layer=2, n_head=3)
    models = {
        "bert": BertForMaskedLM(bert_config()),
        "bart": BartForConditionalGeneration(bart),
        "gpt": OpenAIGPTModel(gpt),
    }
    folder = tmp_path_factory.mktemp("checkpoints")
    for name, model in models.items():
        model.save_pretrained(folder / name)
    return {name: str(folder / name) for name in models}


def section(name: str, checkpoints: dict[str, str], **fields) -> BaselineSection:
    sections = {
        "bert2bert": {"kind": "bert2bert", "encoder": checkpoints["bert"]},
        "tied": {"kind": "bert2bert", "encoder": checkpoints["bert"], "tie_encoder_decoder": True},
        "random": {"kind": "bert2bert", "size": SIZE},
        "transformer": {"kind": "transformer", "size": SIZE},
        "bart": {"kind": "seq2seq", "checkpoint": checkpoints["bart"]},
    }
    return BaselineSection(**sections[name], **fields)


def build(name: str, checkpoints: dict[str, str], **fields):
    torch.manual_seed(1)
    shared = tokenizer()
    return build_autoregressive(section(name, checkpoints, **fields), shared, shared).eval()


@pytest.mark.parametrize("name", START)
def test_the_loss_is_that_of_the_plain_padded_model(name, checkpoints):
    model = build(name, checkpoints)
    sources, targets = source_ids([5, 9, 3]), source_ids([4, 2, 7], seed=2)
    inputs = packed_form(sources, targets)
    output = model(**inputs, return_logits=True)

    ends, start = torch.tensor([3]), torch.tensor([START[name]])
    labels = pad_rows([torch.cat((target, ends)) for target in targets], -100)
    mask = pad_rows([torch.ones_like(source) for source in sources])
    logits = model.model(
        input_ids=pad_rows(sources),
        attention_mask=mask,
        decoder_input_ids=pad_rows([torch.cat((start, target)) for target in targets]),
    ).logits
    expected = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
    torch.testing.assert_close(output.loss_sum, expected)
    assert int(output.loss_count) == 4 + 2 + 7 + 3
    torch.testing.assert_close(output.loss, output.loss_sum / output.loss_count)
    alone = [model(**packed_form([s], [t])).loss_sum for s, t in zip(sources, targets, strict=True)]
    torch.testing.assert_close(output.loss_sum, sum(alone))


@pytest.mark.parametrize("name", START)
@pytest.mark.parametrize("options", [BeamOptions(max_length=6), BeamOptions(num_beams=3, max_length=6)])
def test_generation_is_the_same_alone_in_a_batch_and_reloaded(name, options, checkpoints, tmp_path):
    model = build(name, checkpoints)
    rows = [source.tolist() for source in source_ids([5, 9, 3])]
    outputs = model.generate_rows(rows, options)
    assert all(len(output) <= 6 for output in outputs)
    assert outputs == [model.generate_rows([row], options)[0] for row in rows]
    model.save_pretrained(tmp_path / "model")
    again = load_autoregressive(tmp_path / "model")
    assert again.generate_rows(rows, options) == outputs
    sources, targets = source_ids([5, 9, 3]), source_ids([4, 2, 7], seed=2)
    inputs = packed_form(sources, targets)
    assert torch.equal(again(**inputs).loss_sum, model(**inputs).loss_sum)


def test_greedy_output_is_the_arg_max_without_a_cache(checkpoints):
    """The plain loop: no cache, the whole prefix again for every token."""
    model = build("transformer", checkpoints)
    (source,) = source_ids([7])
    (output,) = model.generate_rows([source.tolist()], BeamOptions(num_tokens=8))
    prefix = [2]
    for _ in range(8):
        logits = model.model(input_ids=source[None], decoder_input_ids=torch.tensor([prefix])).logits[0, -1]
        logits[3] = -torch.inf  # the end is not allowed before the eighth token
        prefix.append(int(logits.argmax()))
    assert output == [token for token in prefix[1:] if token != 0]


@pytest.mark.parametrize("num_beams", [1, 2])
def test_outputs_can_be_made_to_have_a_given_number_of_tokens(num_beams, checkpoints):
    model = build("random", checkpoints)
    generated = model.model.generate(
        torch.tensor([[2, 9, 3]]), **BeamOptions(num_beams=num_beams, num_tokens=5).arguments()
    )
    assert generated.shape == (1, 1 + 5)


def test_special_tokens_and_vocabularies_are_said(checkpoints):
    source, target = tokenizer(), tokenizer(41)
    random = build_autoregressive(section("random", checkpoints), source, target).model
    transformer = build_autoregressive(section("transformer", checkpoints), source, target).model
    for model in (random, transformer):
        config = model.config
        assert (config.decoder_start_token_id, config.eos_token_id, config.pad_token_id) == (2, 3, 0)
        assert model.generation_config.decoder_start_token_id == 2
        assert model.generation_config.eos_token_id == 3
        assert model.generation_config.num_beams in (None, 1)
        assert model.get_output_embeddings().weight.shape == (41, 12)
    assert random.config.vocab_size == 41
    assert random.config.decoder.is_decoder
    assert random.config.decoder.add_cross_attention
    assert not random.config.encoder.is_decoder
    assert transformer.config.encoder_layers == 2
    assert transformer.config.decoder_layers == 1


def test_the_transformer_of_the_paper_has_six_layers_in_each_half():
    shared = tokenizer()
    with torch.device("meta"):
        model = build_autoregressive(BaselineSection(kind="transformer"), shared, shared).model
    config = model.config
    assert (config.encoder_layers, config.decoder_layers, config.d_model) == (6, 6, 512)
    assert config.share_encoder_decoder_embeddings


def test_shared_halves_are_one_set_of_weights(checkpoints):
    plain, tied = (sum(p.numel() for p in build(name, checkpoints).parameters()) for name in ("bert2bert", "tied"))
    assert tied < 0.6 * plain
    model = build("tied", checkpoints)
    decoder = model.model.decoder.bert
    assert decoder.encoder.layer[0].intermediate is model.model.encoder.encoder.layer[0].intermediate
    assert decoder.encoder.layer[0].crossattention is not None


def test_label_smoothing_acts_in_training_mode_only(checkpoints):
    inputs = packed_form(source_ids([5, 9]), source_ids([4, 2], seed=2))
    plain = build("transformer", checkpoints, dropout=0.0)
    smooth = build("transformer", checkpoints, dropout=0.0, label_smoothing=0.1)
    assert torch.equal(plain(**inputs).loss_sum, smooth(**inputs).loss_sum)
    logits = plain(**inputs, return_logits=True).logits
    expected = 0.9 * plain(**inputs).loss_sum - 0.1 * logits.log_softmax(-1).mean(-1).sum()
    torch.testing.assert_close(smooth.train()(**inputs).loss_sum, expected)


@pytest.mark.parametrize("name", ["bert", "gpt"])
def test_classifiers_are_the_same_packed_padded_and_reloaded(name, checkpoints, tmp_path):
    model = build_classifier(BaselineSection(kind="classifier", checkpoint=checkpoints[name]), tokenizer(), 3).eval()
    sources = source_ids([5, 9, 3])
    output = model(**packed_form(sources), labels=torch.tensor([0, 2, 1]))
    alone = torch.cat([model(source[None]).logits for source in sources])
    torch.testing.assert_close(output.logits, alone)
    torch.testing.assert_close(output.loss_sum, F.cross_entropy(alone, torch.tensor([0, 2, 1]), reduction="sum"))
    model.save_pretrained(tmp_path / "model")
    assert torch.equal(load_classifier(tmp_path / "model")(**packed_form(sources)).logits, output.logits)


def test_segments_reach_bert(checkpoints):
    model = build_classifier(BaselineSection(kind="classifier", checkpoint=checkpoints["bert"]), tokenizer(), 1).eval()
    inputs = packed_form(source_ids([5, 9]))
    types = torch.zeros_like(inputs["input_ids"])
    types[3:5] = 1
    assert not torch.equal(model(**inputs, token_type_ids=types).logits[0], model(**inputs).logits[0])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "bert2bert"}, "needs either encoder"),
        ({"kind": "bert2bert", "encoder": "a", "decoder": "b", "tie_encoder_decoder": True}, "remove decoder"),
        ({"kind": "bert2bert", "decoder": "b", "size": SIZE}, "decoder needs encoder"),
        ({"kind": "transformer", "encoder": "a"}, "encoder does not go with kind transformer"),
        ({"kind": "seq2seq"}, "needs checkpoint"),
        ({"kind": "classifier", "checkpoint": "a", "label_smoothing": 0.1}, "label_smoothing does not go"),
        ({"kind": "bert2bert", "size": SIZE, "tie_encoder_decoder": True}, "as many encoder_layers"),
        ({"kind": "transformer", "size": {"hidden_size": 10, "num_attention_heads": 3}}, "not a multiple"),
    ],
)
def test_bad_settings_are_told(fields, message):
    with pytest.raises(ValueError, match=message):
        BaselineSection(**fields)


def test_bad_checkpoints_are_told(checkpoints, tmp_path):
    fits, large = tokenizer(), tokenizer(VOCAB + 3)
    with pytest.raises(CheckpointError, match=r"none: cannot be read as a encoder-decoder"):
        build_autoregressive(BaselineSection(kind="seq2seq", checkpoint=str(tmp_path / "none")), fits, fits)
    with pytest.raises(CheckpointError, match=r"a bart model, not a BERT"):
        build_autoregressive(BaselineSection(kind="bert2bert", encoder=checkpoints["bart"]), fits, fits)
    with pytest.raises(DataError, match=r"has 53 tokens, the tokenizer 56"):
        build_autoregressive(section("bert2bert", checkpoints), fits, large)
    with pytest.raises(ConfigError, match="different vocabularies"):
        build_autoregressive(section("tied", checkpoints), fits, tokenizer(41))
    with pytest.raises(CheckpointError, match="cannot be read as a model for classification"):
        load_classifier(tmp_path)
    with pytest.raises(ConfigError, match="num_beams is 0"):
        BeamOptions(num_beams=0)
    with pytest.raises(ConfigError, match="give 0 <= min_length <= max_length"):
        BeamOptions(min_length=4, max_length=3)


def test_a_trained_model_without_its_start_token_is_refused(checkpoints, tmp_path):
    model = build("bert2bert", checkpoints)
    model.config.decoder_start_token_id = None
    model.model.generation_config.decoder_start_token_id = None
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(CheckpointError, match="says no decoder_start_token_id"):
        load_autoregressive(tmp_path / "model")


def test_a_saved_baseline_is_a_plain_hugging_face_directory(checkpoints, tmp_path):
    model = build("transformer", checkpoints)
    model.save_pretrained(tmp_path / "model")
    plain = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "model")
    (source,) = source_ids([7])
    ours = model.generate_rows([source.tolist()], BeamOptions(max_length=9))[0]
    theirs = plain.generate(source[None], max_new_tokens=10, do_sample=False)[0, 1:].tolist()
    assert theirs[: len(ours)] == ours
