"""The model against its simplest implementation, and the behaviour that callers rely on."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from bnb_ds.errors import ConfigError
from bnb_ds.modeling import BnbForConditionalGeneration
from tests.plain_reference import plain_encode, plain_logits, plain_slots
from tests.tiny import VOCAB, bnb_config, bnb_model, packed_form, padded_form, source_ids

LENGTHS = [7, 1, 10]
TARGETS = source_ids([4, 2, 9], seed=5, vocab_size=31)
UNLIKE_HALVES = {
    "decoder": {"hidden_size": 14, "num_attention_heads": 2, "num_hidden_layers": 3, "vocab_size": 31},
    "encoder": {"num_hidden_layers": 1},
}


@pytest.mark.parametrize("positions", ["absolute", "shared"])
@pytest.mark.parametrize(("ratio", "fraction"), [(2.0, (2, 1)), (1.3, (13, 10)), (0.5, (1, 2))])
@pytest.mark.parametrize("halves", [{}, UNLIKE_HALVES], ids=["like halves", "unlike halves"])
def test_logits_equal_the_obvious_implementation(positions, ratio, fraction, halves):
    model = bnb_model(decoder_positions=positions, decoder_length_ratio=ratio, **halves)
    sources = source_ids(LENGTHS)
    types = [source % 2 for source in sources]
    with torch.no_grad():
        output = model(**padded_form(sources), token_type_ids=padded_form(types)["input_ids"])
    for row, (source, token_types) in enumerate(zip(sources, types, strict=True)):
        encoded = plain_encode(model, source, token_types)
        torch.testing.assert_close(output.encoder_last_hidden_state[row, : len(source)], encoded, rtol=0, atol=1e-12)
        slots = plain_slots(len(source), fraction, 0, positions == "shared")
        expected = plain_logits(model, encoded, slots)
        assert output.decoder_lengths[row] == len(expected)
        torch.testing.assert_close(output.logits[row, : len(expected)], expected, rtol=0, atol=1e-11)
        assert (output.logits[row, len(expected) :] == 0).all()


def test_loss_is_the_ctc_of_the_logits():
    model = bnb_model()
    sources = source_ids(LENGTHS)
    output = model(**padded_form(sources, TARGETS), return_logits=True)
    log_probs = F.log_softmax(output.logits, -1).transpose(0, 1)
    lengths = torch.tensor([len(target) for target in TARGETS])
    # Sample 1 has 2 slots for 2 tokens, so it is feasible. All targets fit, including those with repeated tokens.
    nll = F.ctc_loss(log_probs, torch.cat(TARGETS), output.decoder_lengths, lengths, reduction="none")
    assert output.num_infeasible == 0
    assert output.loss_count == lengths.sum() == 15
    torch.testing.assert_close(output.loss_sum, nll.sum())
    torch.testing.assert_close(output.loss, nll.sum() / 15)


def test_infeasible_samples_are_counted_and_add_nothing():
    model = bnb_model()
    sources = source_ids([7, 1])
    fits, too_long = torch.tensor([5, 6, 7]), torch.tensor([5, 6, 7])
    output = model(**packed_form(sources, [fits, too_long]))
    alone = model(**packed_form(sources[:1], [fits]))
    assert (output.num_infeasible, output.loss_count) == (1, 3)
    torch.testing.assert_close(output.loss_sum, alone.loss_sum)
    only = model(**packed_form(sources[1:], [too_long]))
    assert (only.loss, only.loss_sum, only.loss_count, only.num_infeasible) == (0, 0, 0, 1)


def test_sums_do_not_depend_on_how_the_batch_is_cut():
    model = bnb_model()
    sources = source_ids(LENGTHS)
    whole = model(**packed_form(sources, TARGETS))
    parts = [model(**packed_form([source], [target])) for source, target in zip(sources, TARGETS, strict=True)]
    torch.testing.assert_close(sum(part.loss_sum for part in parts), whole.loss_sum, rtol=0, atol=1e-10)
    assert sum(part.loss_count for part in parts) == whole.loss_count


def test_logits_come_with_a_loss_only_when_asked_for():
    model = bnb_model()
    inputs = packed_form(source_ids(LENGTHS), TARGETS)
    assert model(**inputs).logits is None
    assert model(**inputs, return_logits=True).logits.shape == (36, VOCAB)
    unlabelled = packed_form(source_ids(LENGTHS))
    assert model(**unlabelled).loss is None
    assert model(**unlabelled, return_logits=False).logits is None
    output = model(**unlabelled, return_best=True)
    assert torch.equal(output.best, output.logits.argmax(-1))
    assert model(**inputs, return_best=True).logits is None


def test_output_projection_is_the_decoders_word_embedding():
    model = bnb_model()
    inputs = padded_form(source_ids([5]))
    matrices = [name for name, weight in model.named_parameters() if weight.shape[0] == VOCAB and weight.dim() == 2]
    assert matrices == [
        "model.encoder.embeddings.word_embeddings.weight",
        "model.decoder.embeddings.word_embeddings.weight",
    ]
    assert model.get_output_embeddings() is model.model.decoder.embeddings.word_embeddings
    assert model.get_input_embeddings() is model.model.encoder.embeddings.word_embeddings
    with torch.no_grad():
        before = model(**inputs).logits
        model.get_output_embeddings().weight[7] += 1
        after = model(**inputs).logits
    assert torch.equal(after[..., torch.arange(VOCAB) != 7], before[..., torch.arange(VOCAB) != 7])
    assert (after[..., 7] != before[..., 7]).all()


@pytest.mark.parametrize("halves", [{}, UNLIKE_HALVES], ids=["like halves", "unlike halves"])
def test_every_parameter_is_trained(halves):
    model = bnb_model(**halves).train()
    model(**packed_form(source_ids(LENGTHS), TARGETS)).loss_sum.backward()
    still = [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()]
    # Key biases shift all scores of a query by the same number, so the softmax does not change.
    assert [name for name in still if not name.endswith("key.bias")] == []


def test_training_steps_are_bit_equal_under_one_seed():
    def losses():
        model = bnb_model(dtype=torch.float32, latent_dropout=0.1).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        torch.manual_seed(7)
        for _ in range(3):
            loss = model(**packed_form(source_ids(LENGTHS), TARGETS)).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield loss.item()

    assert list(losses()) == list(losses())


@pytest.mark.parametrize("deep_supervision", [False, True])
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing_changes_no_gradient(use_reentrant, deep_supervision):
    inputs = packed_form(source_ids(LENGTHS), TARGETS)

    def gradients(checkpointed):
        model = bnb_model(latent_dropout=0.1, deep_supervision=deep_supervision).train()
        if checkpointed:
            enable = getattr(
                model, "activation_checkpointing_enable", model.gradient_checkpointing_enable
            )  # by version
            enable({"use_reentrant": use_reentrant})
            model.enable_input_require_grads()
        torch.manual_seed(3)
        model(**inputs).loss_sum.backward()
        return {name: weight.grad for name, weight in model.named_parameters()}

    plain, recomputed = gradients(False), gradients(True)
    for name, gradient in plain.items():
        torch.testing.assert_close(recomputed[name], gradient, rtol=0, atol=1e-12)


QUIET = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@pytest.mark.parametrize(
    ("config", "is_random"),
    [
        ({}, False),
        ({"latent_dropout": 0.5}, True),
        ({"encoder": {**QUIET, "attention_probs_dropout_prob": 0.5}}, True),
        ({"decoder": {**QUIET, "attention_probs_dropout_prob": 0.5}}, True),
        ({"encoder": {**QUIET, "hidden_dropout_prob": 0.5}}, True),
        ({"decoder": {**QUIET, "hidden_dropout_prob": 0.5}}, True),
    ],
)
def test_each_dropout_acts_in_training_and_only_there(config, is_random):
    model = bnb_model(**{"encoder": QUIET, "decoder": QUIET, **config})
    inputs = packed_form(source_ids(LENGTHS))
    assert torch.equal(model(**inputs).logits, model(**inputs).logits)
    model.train()
    assert torch.equal(model(**inputs).logits, model(**inputs).logits) is not is_random


def test_latent_dropout_falls_on_latents_and_on_the_memory():
    model = bnb_model(latent_dropout=0.5).train()
    seen = []
    model.model.decoder.register_forward_pre_hook(lambda _, arguments: seen.extend(arguments[:2]))
    model(**packed_form(source_ids([20, 20, 20])))
    for values in seen:
        assert 0.3 < (values == 0).double().mean() < 0.7
    assert len(seen) == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_finite_and_close(dtype):
    inputs = packed_form(source_ids(LENGTHS), TARGETS)
    exact = bnb_model()(**inputs).loss.item()
    model = bnb_model(dtype=dtype).train()
    output = model(**inputs)
    assert output.loss_sum.dtype == torch.float32
    output.loss.backward()
    assert all(weight.grad.isfinite().all() for weight in model.parameters())
    assert model.eval()(**inputs).loss.item() == pytest.approx(exact, rel=0.05)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_full_vocabulary_at_full_length_is_finite_in_low_precision(dtype):
    size = {"vocab_size": 28_996, "max_position_embeddings": 512, "hidden_size": 48, "initializer_range": 0.02}
    model = bnb_model(dtype=dtype, encoder=size, decoder=size, decoder_length_ratio=1.0).train()
    sources = source_ids([512, 130], vocab_size=28_996)
    output = model(**packed_form(sources, [sources[0][:200], sources[1][:1]]))
    output.loss.backward()
    assert output.num_infeasible == 0
    assert output.loss.isfinite()
    assert all(weight.grad.isfinite().all() for weight in model.parameters())


@pytest.mark.slow
def test_a_compiled_model_gives_the_same_at_changing_lengths():
    torch._dynamo.reset()
    model = bnb_model(encoder={"num_hidden_layers": 1}, decoder={"num_hidden_layers": 1})
    compiled = torch.compile(model, backend="aot_eager", dynamic=True)
    for seed, lengths in enumerate(([7, 2, 10], [3, 5])):
        inputs = packed_form(source_ids(lengths, seed), source_ids([(n + 1) // 2 for n in lengths], seed + 9))
        gradients = []
        for network in (model, compiled):
            model.zero_grad()
            network(**inputs).loss.backward()
            gradients.append([weight.grad.clone() for weight in model.parameters()])
        for plain, other in zip(*gradients, strict=True):
            torch.testing.assert_close(other, plain, rtol=0, atol=1e-10)


@pytest.mark.parametrize("reduction", ["token", "sample"])
def test_the_smoothing_term_counts_as_the_loss_does(reduction):
    """The loss with its KL term equals the one from the logits, sequence by sequence. One sequence is infeasible."""
    model = bnb_model(kl_weight=0.3, loss_reduction=reduction, decoder_length_ratio=1.0)
    sources, targets = source_ids([9, 2, 6]), [torch.tensor([5, 6, 7]), torch.tensor([8, 8, 8]), torch.tensor([9])]
    output = model(**packed_form(sources, targets), return_logits=True)
    total, count, divergences = 0.0, 0, []
    for logits, target in zip(output.logits.split([9, 2, 6]), targets, strict=True):
        log_probs = logits.log_softmax(-1)
        is_feasible = target is not targets[1]
        nll = torch.nn.functional.ctc_loss(
            log_probs[:, None], target[None], [len(logits)], [len(target)], reduction="none", zero_infinity=True
        )[0]
        divergence = -log_probs.mean(-1) - math.log(VOCAB)
        divergences.append(divergence)
        own = nll / len(target) + 0.3 * divergence.mean()
        times = (len(target) if reduction == "token" else 1) if is_feasible or reduction == "sample" else 0
        total, count = total + times * own, count + times
    assert output.num_infeasible == 1
    assert output.loss_count == count
    torch.testing.assert_close(output.loss_sum, total)
    torch.testing.assert_close(output.kl, torch.cat(divergences).mean())


def test_padded_decoding_needs_padded_input():
    model = bnb_model(decoder_length="padded")
    with pytest.raises(ConfigError, match="decoder_length 'padded' decodes padding, but packed input has none: give"):
        model(**packed_form(SOURCES))
    assert model(**padded_form(SOURCES)).decoder_lengths.tolist() == [3, 3]


def test_from_pretrained_checks_what_it_replaces(tmp_path):
    bnb_model(dtype=torch.float32).save_pretrained(tmp_path)
    model = BnbForConditionalGeneration.from_pretrained(tmp_path, decoder_length="predicted")
    assert model.model.length_predictor.log_width == 0
    with pytest.raises(ConfigError, match="decoder_length is 'guess': use one of"):
        BnbForConditionalGeneration.from_pretrained(tmp_path, decoder_length="guess")


def test_tied_halves_are_one_set_of_weights(tmp_path):
    model = bnb_model(dtype=torch.float32, tie_encoder_decoder=True)
    own = sum(weight.numel() for weight in model.parameters())
    apart = sum(weight.numel() for weight in bnb_model().parameters())
    body = sum(weight.numel() for weight in model.model.encoder.parameters())
    assert own == apart - body
    inputs = packed_form(source_ids(LENGTHS), TARGETS)
    model.train()(**inputs).loss.backward()
    query = model.model.encoder.layer[0].attention.self.query.weight
    assert query is model.model.decoder.layer[0].attention.self.query.weight
    assert query.grad.any()
    model.eval().save_pretrained(tmp_path)
    loaded = BnbForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(loaded(**inputs).loss, model(**inputs).loss)
    layers = (loaded.model.encoder.layer[1], loaded.model.decoder.layer[1])
    assert layers[0].output.dense.bias is layers[1].output.dense.bias


def test_a_model_on_the_meta_device_takes_no_memory():
    with torch.device("meta"):
        model = BnbForConditionalGeneration(bnb_config())
    assert {weight.device.type for weight in model.parameters()} == {"meta"}
    real = BnbForConditionalGeneration(bnb_config())
    assert {name: weight.shape for name, weight in model.named_parameters()} == {
        name: weight.shape for name, weight in real.named_parameters()
    }


def test_new_models_differ_by_seed_only_and_follow_initializer_range():
    first, again, other = (bnb_model(seed) for seed in (0, 0, 1))
    weight = "model.decoder.layer.0.crossattention.self.query.weight"
    assert torch.equal(first.state_dict()[weight], again.state_dict()[weight])
    assert not torch.equal(first.state_dict()[weight], other.state_dict()[weight])
    assert 0.15 < first.state_dict()["model.decoder.embeddings.word_embeddings.weight"].std() < 0.25
    # [PAD] is the blank, so its output row must be initialised like any other, and be trained.
    assert first.get_output_embeddings().weight[0].std() > 0.1


def test_the_bare_model_returns_both_forms():
    model = bnb_model().model
    sources = source_ids(LENGTHS)
    padded, packed = model(**padded_form(sources)), model(**packed_form(sources))
    assert padded.last_hidden_state.shape == (3, 20, 12)
    assert padded.latent.shape == (3, 10, 5)
    assert padded.encoder_last_hidden_state.shape == (3, 10, 12)
    assert packed.latent.shape == (18, 5)
    assert padded.decoder_lengths.tolist() == [14, 2, 20]
    assert torch.equal(padded.last_hidden_state[2], packed.last_hidden_state[16:])
    assert torch.equal(padded.latent[0, :7], packed.latent[:7])


SOURCES = source_ids([3, 2])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": torch.tensor([5, 6])}, r"labels must be \[B, S\] with -100 behind each target, or \[sum S\] with"),
        (
            {"labels": torch.tensor([[5], [6]]), "label_lengths": torch.tensor([1, 1])},
            "with label_lengths, labels must be the targets concatenated",
        ),
        ({"labels": torch.tensor([[5, 0], [6, -100]])}, "a target holds the blank 0: mark padding of labels with -100"),
        ({"labels": torch.tensor([[5], [VOCAB]])}, r"a target holds the label 53: labels must lie in \[0, 53\)"),
        ({"labels": torch.tensor([[5]])}, "target_lengths has 1 entries for a batch of 2"),
        (
            {"labels": torch.tensor([5, 6]), "label_lengths": torch.tensor([1, 1]), "max_label_length": 2},
            "max_label_length is 2, but the longest of label_lengths is 1",
        ),
    ],
)
def test_labels_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        bnb_model()(**padded_form(SOURCES), **changes)


def test_a_source_longer_than_the_encoder_is_refused():
    model = bnb_model(decoder={"max_position_embeddings": 99})
    with pytest.raises(ConfigError, match="a source has 25 tokens, but the encoder has 24 positions: cut"):
        model(**padded_form(source_ids([25])))
