"""A model without a decoder against a plain BERT that reads the source with [MASK]s inserted."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from transformers import BertForMaskedLM

from bnb_ds.config.model_section import ModelSection
from bnb_ds.errors import ConfigError
from bnb_ds.model.slots import decoder_lengths
from bnb_ds.model.target_rules import check_glancing
from bnb_ds.model_factory import build_model, model_config
from bnb_ds.modeling import BnbConfig, BnbForConditionalGeneration
from bnb_ds.shards.reader import TokenShards
from tests.backbones import FAMILIES, POSITIONS, checkpoint_model
from tests.tiny import ENCODER_ALONE, bert_config, bnb_config, bnb_model, packed_form, padded_form, source_ids

SOURCES, TARGETS = source_ids([7, 1, 10, 3]), source_ids([4, 2, 9, 5], seed=2)
MASK = ENCODER_ALONE["mask_token_id"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    directory = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    model = BertForMaskedLM(bert_config(max_position_embeddings=40)).eval()
    torch.nn.init.normal_(model.cls.predictions.bias)
    model.save_pretrained(directory)
    return model.double(), directory


def from_bert(directory, masks, **fields):
    settings = {**ENCODER_ALONE, "decoder_length_ratio": masks + 1, **fields}
    return BnbForConditionalGeneration.from_bert(directory, bos_token_id=2, eos_token_id=3, **settings).double()


def with_masks(source, masks):
    """Each token of a source, with [MASK]s behind it."""
    return torch.cat([torch.tensor([token, *[MASK] * masks]) for token in source.tolist()])


@pytest.mark.parametrize("masks", [1, 2, 3])
def test_logits_are_those_of_bert_on_the_source_with_masks(bert, masks):
    model = from_bert(bert[1], masks)
    packed = model(**packed_form(SOURCES)).logits
    expected = [bert[0](with_masks(source, masks)[None]).logits[0] for source in SOURCES]
    torch.testing.assert_close(packed, torch.cat(expected), rtol=0, atol=1e-10)
    padded = model(**padded_form(SOURCES))
    rows = [row[:length] for row, length in zip(padded.logits, padded.decoder_lengths.tolist(), strict=True)]
    torch.testing.assert_close(torch.cat(rows), packed, rtol=0, atol=1e-10)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_every_family(family, tmp_path):
    plain = checkpoint_model(family)
    plain.save_pretrained(tmp_path)
    model = from_bert(tmp_path, 1)
    assert model.config.blank_token_id == model.config.source_pad_token_id
    expected = [plain.double()(with_masks(source, 1)[None]).logits[0] for source in SOURCES]
    # ModernBERT's rotary angles are float32 in any model.
    atol = 1e-6 if family == "modernbert" else 1e-10
    torch.testing.assert_close(model(**packed_form(SOURCES)).logits, torch.cat(expected), rtol=0, atol=atol)
    longest = POSITIONS // 2
    assert model.generate(torch.full((1, longest), 7)).shape[0] == 1
    message = (
        f"a source has {longest + 1} tokens; with the inserted mask tokens it takes {POSITIONS + 2} positions, but"
    )
    with pytest.raises(ConfigError, match=message):
        model.generate(torch.full((1, longest + 1), 7))


def test_token_types_reach_the_slots(bert):
    model = from_bert(bert[1], 1)
    types = [torch.arange(len(source)) % 2 for source in SOURCES]
    logits = model(**packed_form(SOURCES), token_type_ids=torch.cat(types)).logits
    expected = [
        bert[0](with_masks(source, 1)[None], token_type_ids=kinds.repeat_interleave(2)[None]).logits[0]
        for source, kinds in zip(SOURCES, types, strict=True)
    ]
    torch.testing.assert_close(logits, torch.cat(expected), rtol=0, atol=1e-10)


def test_the_loss_and_its_gradient_are_those_of_ctc_over_berts_logits(bert):
    model, plain = from_bert(bert[1], 1), bert[0]
    losses = []
    for source, target in zip(SOURCES, TARGETS, strict=True):
        log_probs = F.log_softmax(plain(with_masks(source, 1)[None]).logits[0], -1)
        if len(target) + int((target[1:] == target[:-1]).sum()) <= 2 * len(source):
            losses.append(
                F.ctc_loss(log_probs[:, None], target[None], (len(log_probs),), (len(target),), reduction="sum")
            )
    plain.zero_grad()
    torch.stack(losses).sum().backward()
    output = model(**packed_form(SOURCES, TARGETS))
    output.loss_sum.backward()
    torch.testing.assert_close(output.loss_sum, torch.stack(losses).sum())
    assert int(output.num_infeasible) == len(SOURCES) - len(losses)
    theirs = dict(plain.named_parameters())
    for name, parameter in model.model.encoder.named_parameters():
        place = f"bert.encoder.{name}" if name.startswith("layer.") else f"bert.{name}"
        torch.testing.assert_close(parameter.grad, theirs[place].grad, msg=lambda text, name=name: f"{name}: {text}")
    torch.testing.assert_close(model.lm_head.bias.grad, theirs["cls.predictions.bias"].grad)


@pytest.mark.parametrize("options", [{}, {"beam_size": 4}, {"max_length": 5}, {"no_repeat_ngram_size": 1}], ids=str)
def test_an_output_does_not_depend_on_the_batch(options):
    model = bnb_model(**ENCODER_ALONE, dtype=torch.float32)
    together = model.generate(**padded_form(SOURCES), return_scores=True, **options)
    for place, source in enumerate(SOURCES):
        alone = model.generate(source[None], return_scores=True, **options)
        length = int(alone.lengths[0])
        assert int(together.lengths[place]) == length
        assert torch.equal(together.sequences[place, :length], alone.sequences[0, :length])
        torch.testing.assert_close(together.scores[place], alone.scores[0], rtol=1e-5, atol=0)
    if "max_length" in options:
        assert int(together.lengths.max()) <= 5


def test_it_has_no_weights_of_a_decoder_and_is_saved(tmp_path):
    model = bnb_model(**ENCODER_ALONE, dtype=torch.float32)
    names = set(model.state_dict())
    assert {name.split(".")[1] for name in names if name.startswith("model.")} == {"encoder"}
    assert model.get_output_embeddings() is model.get_input_embeddings()
    model.save_pretrained(tmp_path)
    again = BnbForConditionalGeneration.from_pretrained(tmp_path)
    assert again.config == model.config
    assert torch.equal(again(**padded_form(SOURCES)).logits, model(**padded_form(SOURCES)).logits)


def test_layers_of_a_checkpoint(bert):
    model = from_bert(bert[1], 1, encoder_layers=1)
    assert len(model.model.encoder.layer) == model.config.decoder.num_hidden_layers == 1
    with pytest.raises(ConfigError, match="decoder_layers is 1: the model has no decoder; set encoder_layers"):
        from_bert(bert[1], 1, decoder_layers=1)
    with pytest.raises(
        ConfigError, match="has_decoder is false, but the reference implementation's models have a decoder"
    ):
        BnbForConditionalGeneration.from_reference("elsewhere", has_decoder=False)
    with pytest.raises(ConfigError, match="decoder is elsewhere, but has_decoder is false: leave one of the two out"):
        BnbForConditionalGeneration.from_bert(bert[1], "elsewhere", **ENCODER_ALONE)


@pytest.mark.parametrize(
    ("field", "message"),
    [
        (
            {"decoder_positions": "shared"},
            "decoder_positions is 'shared', but a model without a decoder has 'absolute'",
        ),
        (
            {"slot_tokens": "mask"},
            "slot_tokens is 'mask', but a model without a decoder has 'inserted': set it to that",
        ),
        ({"decoder_latent": True}, "decoder_latent is True, but a model without a decoder has False"),
        ({"decoder_length": "padded"}, "decoder_length is 'padded', but a model without a decoder has 'source'"),
        ({"deep_supervision": True}, "deep_supervision is True, but a model without a decoder has False"),
        ({"tie_encoder_decoder": True}, "tie_encoder_decoder is True, but a model without a decoder has False"),
        ({"decoder_length_max": 9}, "decoder_length_max is 9, but a model without a decoder has None"),
        ({"decoder_length_ratio": 0.5}, "decoder_length_ratio is 0.5 and decoder_length_offset 0: without a decoder"),
        ({"decoder_tokens": False}, "slot_tokens 'inserted' shows tokens to the decoder: set decoder_tokens to true"),
    ],
    ids=str,
)
def test_settings_that_need_a_decoder(field, message):
    with pytest.raises(ConfigError, match=message):
        bnb_config(**{**ENCODER_ALONE, **field})


def test_glancing_and_refinement_would_hide_the_source():
    model = bnb_model(**ENCODER_ALONE, dtype=torch.float32)
    with pytest.raises(
        ConfigError, match="glancing would hide the source, which the slots of a model without a decoder"
    ):
        check_glancing(model.config)
    with pytest.raises(ConfigError, match="refinement is 2: its passes would hide the source, which the slots"):
        model.generate(**padded_form(SOURCES), refinement=2)


def test_a_source_that_has_no_room_for_masks(small_shards):
    model = bnb_model(**ENCODER_ALONE, decoder_length_ratio=4, dtype=torch.float32)  # 24 positions
    message = "a source has 8 tokens; with the inserted mask tokens it takes 32 positions, but the encoder has 24: cut"
    with pytest.raises(ConfigError, match=f"{message} the source to 6, or insert 2 behind each token"):
        model(torch.full((1, 8), 7))
    with pytest.raises(ConfigError, match=r"takes 100 positions, but the encoder has 24: cut the source to 6$"):
        model(torch.full((1, 25), 7))
    assert model(torch.full((1, 6), 7)).logits.shape[1] == decoder_lengths(torch.tensor(6), model.config) == 24
    shards = TokenShards(small_shards, "train")
    section = ModelSection(**{k: v for k, v in ENCODER_ALONE.items() if k != "mask_token_id"})
    with pytest.raises(
        ConfigError, match=r"data.max_length 300: with .* takes 600 positions, but the encoder has 512: "
    ):
        model_config(section, shards, 300)


def test_a_checkpoint_keeps_or_lacks_its_decoder(tmp_path, small_shards):
    shards = TokenShards(small_shards, "train")
    size = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 20}
    alone = {k: v for k, v in ENCODER_ALONE.items() if k != "mask_token_id"}
    build_model(ModelSection(size=size), shards, 32).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="has a decoder; choose another model or another kind"):
        model_config(ModelSection(checkpoint=str(tmp_path), **alone), shards, 32)


def test_a_decoder_may_read_the_same_slots():
    with_decoder = {k: v for k, v in ENCODER_ALONE.items() if k not in ("has_decoder", "decoder_latent")}
    model = bnb_model(**with_decoder)
    slots = model.model.open(model.model.encode(model.model.pack(**packed_form(SOURCES))))
    assert torch.equal(slots.token_ids, torch.cat([with_masks(source, 1) for source in SOURCES]))


def test_configurations_are_read_as_they_were_before():
    assert BnbConfig.from_dict({"model_type": "bnb"}).has_decoder


@pytest.mark.slow
def test_it_learns_to_write_more_tokens_than_it_reads():
    """Each even token is written as two, for which its [MASK] is needed, and the order of pairs is turned."""
    torch.manual_seed(0)
    size = {"hidden_size": 48, "num_attention_heads": 4, "intermediate_size": 96, "hidden_dropout_prob": 0.0}
    half = {**size, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.05, "vocab_size": 40}
    model = BnbForConditionalGeneration(bnb_config(half, **ENCODER_ALONE)).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def pairs(number, seed):
        sources = source_ids([4 + 2 * (place % 3) for place in range(number)], seed, vocab_size=20)
        written = [
            [token + offset for token in source.view(-1, 2).flip(1).flatten().tolist() for offset in _written(token)]
            for source in sources
        ]
        return sources, [torch.tensor(target) for target in written]

    for step in range(150):
        optimizer.zero_grad()
        model(**packed_form(*pairs(32, step))).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    sources, targets = pairs(60, seed=10_000)
    outputs = model.eval().generate(**padded_form(sources), return_scores=True)
    right = sum(
        output[:length].tolist() == target.tolist()
        for output, length, target in zip(outputs.sequences, outputs.lengths.tolist(), targets, strict=True)
    )
    assert right >= 54


def _written(token: int) -> tuple[int, ...]:
    return (0,) if token % 2 else (0, 18)
