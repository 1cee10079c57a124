"""Decoder layers that predict tokens and read the predictions of the layer before; the loss is the mean of theirs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bnb_ds.data.batch import GLANCING_DRAWS, MIXED_DRAWS, PackedBatch
from bnb_ds.errors import ConfigError
from bnb_ds.model.fixed_shape import RectangularBnb
from bnb_ds.model.layers import PredictionFeedback
from bnb_ds.model.length import stretch_latents
from bnb_ds.model.target_rules import check_mixed_training
from bnb_ds.modeling import BnbForConditionalGeneration, BnbModel
from bnb_ds.systems.bnb import BnbClassifier
from bnb_ds.targets.interface import Targets
from bnb_ds.tasks.registry import get_task
from bnb_ds.tasks.text_lengths import Lengths
from bnb_ds.train.objectives import NgramMatches, ObjectiveSettings, Reconstruction
from tests.tiny import bnb_config, bnb_model, packed_form, padded_form, source_ids

MODELS = Path(__file__).parents[2] / "golden" / "first_models"
TOKENS = {"decoder_tokens": True, "mask_token_id": 4}
KINDS = {
    "ctc": {"target": "ctc"},
    "ctc, samples": {"target": "ctc", "loss_reduction": "sample", "kl_weight": 0.2, "decoder_length_max": 7},
    "token": {"decoder_length": "predicted"},
    "dag": {"target": "dag", "decoder_length_max": 11},
    "dag, predicted": {"target": "dag", "decoder_length": "predicted"},
}
QUIET = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
SOURCES = source_ids([4, 3, 6])
#: the last one does not fit into 7 slots of CTC
LABELS = [torch.tensor(row) for row in ([2, 9, 9, 3], [2, 3], [2, 12, 12, 12, 8, 3])]


def deep_model(*, layers: int = 3, dropout: dict[str, float] = QUIET, **fields):
    """A model in training mode whose feedback is far from [I, 0]."""
    halves = {"encoder": dropout, "decoder": {**dropout, "num_hidden_layers": layers}}
    model = bnb_model(**halves, deep_supervision=True, **fields).train()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for feedback in (each for each in model.model.decoder.feedback if isinstance(each, PredictionFeedback)):
            feedback.weight.copy_(0.4 * torch.randn(feedback.weight.shape, generator=generator, dtype=torch.float64))
    return model


def layers_by_hand(model, encoded, slots, replaced=None):
    """Hidden states of the head behind each layer, written out."""
    decoder, head, weight = model.model.decoder, model.lm_head, model.get_output_embeddings().weight
    latent = encoded.latent
    if model.model.length_predictor is not None:
        latent = stretch_latents(latent, encoded.layout, slots.layout, model.model.length_predictor.width)
    is_stretched = model.model.length_predictor is not None
    hidden = decoder.embeddings(latent, slots, is_stretched=is_stretched)
    found = []
    for number, layer in enumerate(decoder.layer):
        hidden = layer(hidden[None], None, encoded.hidden[None], layout=slots.layout, memory_layout=encoded.layout)[0]
        found.append(head(hidden))
        if number + 1 < len(decoder.layer):
            tokens = (found[-1] @ weight.T + head.bias).argmax(1)
            if replaced is not None:
                tokens = torch.where(replaced >= 0, replaced, tokens)
            first, second = decoder.feedback[number].weight.split(hidden.shape[1], dim=1)
            hidden = hidden @ first.T + weight[tokens] @ second.T
    return found


def slots_of(model, sources, targets):
    inputs = model.model.pack(**packed_form(sources))
    encoded = model.model.encode(inputs)
    lengths = torch.tensor([len(target) for target in targets])
    return encoded, model.model.open(encoded, lengths), Targets(torch.cat(targets), lengths)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_the_loss_is_the_mean_of_the_layers(kind):
    model = deep_model(**kind)
    output = model(**packed_form(SOURCES, LABELS))
    encoded, slots, targets = slots_of(model, SOURCES, LABELS)
    hidden = layers_by_hand(model, encoded, slots)
    assert len(hidden) == 3
    losses = [model.target.scores(model._slot_states(each, encoded, slots), targets) for each in hidden]
    plain = torch.stack([scores.loss_sum for scores in losses])
    assert plain.unique().numel() == 3
    expected = plain.mean().item()
    if output.length_loss is not None:
        expected += model.config.length_loss_weight * _length_sum(model, encoded, targets)
    assert output.loss_sum.item() == pytest.approx(expected, rel=1e-12)
    assert output.loss_count.item() == losses[0].count.item()
    assert output.num_infeasible.item() == losses[0].num_infeasible.item()
    assert output.kl.item() == pytest.approx(sum(scores.kl.item() for scores in losses) / 3, rel=1e-12)
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert all(feedback.weight.grad.abs().sum() > 0 for feedback in model.model.decoder.feedback)
    # Outside training, the loss is that of what the model writes.
    last = model.eval()(**packed_form(SOURCES, LABELS)).loss_sum.item()
    assert last == pytest.approx(expected - plain.mean().item() + plain[-1].item(), rel=1e-12)


def _length_sum(model, encoded, targets):
    nll = model.model.length_predictor.nll(encoded.length_logits, encoded.layout.lengths, targets.lengths)
    return (nll * targets.lengths).sum().item()


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("name", ["ctc", "dag"])
def test_the_loss_of_ngrams_is_a_mean_too(name, size):
    model = deep_model(**KINDS[name])
    output = model(**packed_form(SOURCES, LABELS), ngram_size=size)
    encoded, slots, targets = slots_of(model, SOURCES, LABELS)
    states = [model._slot_states(each, encoded, slots) for each in layers_by_hand(model, encoded, slots)]
    plain = [model.target.ngram_scores(each, targets, size).loss_sum.item() for each in states]
    assert output.loss_sum.item() == pytest.approx(sum(plain) / 3, rel=1e-12)
    assert output.loss_count.item() == 3


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_packed_is_padded_is_one_by_one(kind):
    model = deep_model(**kind)
    packed = model(**packed_form(SOURCES, LABELS))
    padded = model(**padded_form(SOURCES, LABELS))
    assert packed.loss_sum.item() == pytest.approx(padded.loss_sum.item(), rel=1e-12)
    alone = [
        model(source[None], labels=target[None]).loss_sum.item() for source, target in zip(SOURCES, LABELS, strict=True)
    ]
    assert packed.loss_sum.item() == pytest.approx(sum(alone), rel=1e-12)
    mirrored = model(**packed_form(SOURCES[::-1], LABELS[::-1]))
    assert packed.loss_sum.item() == pytest.approx(mirrored.loss_sum.item(), rel=1e-12)
    model.eval()
    together = model.generate(**{key: padded_form(SOURCES)[key] for key in ("input_ids", "attention_mask")})
    for row, source in zip(together.tolist(), SOURCES, strict=True):
        own = model.generate(source[None])[0].tolist()
        assert row[: len(own)] == own


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_feedback_of_i_and_0_computes_the_same_bits(kind, tmp_path):
    dropout = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2}
    plain = bnb_model(encoder=dropout, decoder=dropout, **kind)
    deep = bnb_model(encoder=dropout, decoder=dropout, deep_supervision=True, **kind)
    ours, theirs = deep.state_dict(), plain.state_dict()
    new = set(ours) - set(theirs)
    assert new == {"model.decoder.feedback.0.weight"}
    feedback = ours["model.decoder.feedback.0.weight"]
    assert torch.equal(feedback, torch.eye(12, 24, dtype=torch.float64))
    assert all(torch.equal(ours[name], weight) for name, weight in theirs.items())  # random weights do not shift
    plain.save_pretrained(tmp_path)
    read = BnbForConditionalGeneration.from_pretrained
    loaded_plain = read(tmp_path, dtype=torch.float64).eval()
    loaded_deep = read(tmp_path, deep_supervision=True, dtype=torch.float64).eval()
    assert torch.equal(loaded_deep.state_dict()["model.decoder.feedback.0.weight"], feedback)
    given = packed_form(SOURCES, LABELS)
    # Products depend on where weights lie in memory, so loaded models are compared with loaded ones.
    for one, other in ((plain, deep), (loaded_plain, loaded_deep)):
        before, after = one(**given, return_logits=True), other(**given, return_logits=True)
        assert torch.equal(before.logits, after.logits)
        assert torch.equal(before.loss_sum, after.loss_sum)
        first, second = (model.generate(SOURCES[0][None], return_scores=True) for model in (one, other))
        assert torch.equal(first.sequences, second.sequences)
        assert torch.equal(first.scores, second.scores)
    # In training too: same dropout, same hidden states of the last layer.
    states = []
    for model in (plain.train(), deep.train()):
        torch.manual_seed(3)
        encoded, slots, _ = slots_of(model, SOURCES, LABELS)
        states.append(model.states(encoded, slots).hidden)
    assert torch.equal(*states)


@pytest.mark.parametrize("name", ["ctc", "token"])
def test_an_old_model_becomes_a_deep_one_with_the_same_outputs(name):
    directory = MODELS / name
    expected = json.loads((directory / "outputs.json").read_text())
    ids = torch.tensor(expected["input_ids"])
    model = BnbForConditionalGeneration.from_pretrained(directory, dtype=torch.float64, deep_supervision=True).eval()
    assert model.generate(ids, (ids != 0).long()).tolist() == expected["sequences"]


def test_a_deep_model_is_saved_and_loaded(tmp_path):
    model = deep_model(**KINDS["ctc"]).eval()
    model.save_pretrained(tmp_path)
    again = BnbForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float64).eval()
    assert again.config.deep_supervision
    assert torch.equal(again(SOURCES[0][None]).logits, model(SOURCES[0][None]).logits)
    without = BnbForConditionalGeneration.from_pretrained(tmp_path, deep_supervision=False, dtype=torch.float64)
    assert without.model.decoder.feedback is None


def draws_of(model, kind, seed=1):
    lengths = model(**packed_form(SOURCES, LABELS)).decoder_lengths.tolist()
    return lengths, torch.rand(sum(lengths), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_mixing_replaces_what_layers_read(kind):
    dropout = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2}
    model = deep_model(dropout=dropout, **kind)
    _, draws = draws_of(model, kind)
    given = packed_form(SOURCES, LABELS)

    def step(**more):
        model.zero_grad()
        torch.manual_seed(7)
        loss = model(**given, **more).loss_sum
        loss.backward()
        return loss, model.model.latent.weight.grad.clone()

    plain, gradient = step()
    never, same_gradient = step(mixed_ratio=0.0, mixed_draws=draws)
    assert torch.equal(plain, never)
    assert torch.equal(gradient, same_gradient)
    assert not torch.equal(step(mixed_ratio=0.9, mixed_draws=draws)[0], plain)
    model.eval()
    assert torch.equal(step(mixed_ratio=0.9, mixed_draws=draws)[0], step()[0])


@pytest.mark.parametrize("ratio", [0.5, 1.0])
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_the_token_that_replaces_a_prediction_is_that_of_the_best_path(kind, ratio):
    model = deep_model(**kind)
    _, draws = draws_of(model, kind)
    encoded, slots, targets = slots_of(model, SOURCES, LABELS)
    with torch.no_grad():
        first = model._slot_states(layers_by_hand(model, encoded, slots)[-1], encoded, slots)
    oracle = model.target.align(first, targets)
    words = targets.at(oracle, slots.layout)
    if "ctc" in (model.config.target or ""):
        words = torch.where(oracle >= 0, words, 0)
    replaced = torch.where(draws < ratio, words, -1)
    hidden = layers_by_hand(model, encoded, slots, replaced)
    states = [model._slot_states(each, encoded, slots) for each in hidden]
    expected = sum(model.target.scores(each, targets).loss_sum.item() for each in states) / 3
    model.config.length_loss_weight = 0.0
    output = model(**packed_form(SOURCES, LABELS), mixed_ratio=ratio, mixed_draws=draws)
    assert output.loss_sum.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_mixing_and_glancing_do_not_depend_on_micro_batches(kind):
    if kind.get("kl_weight"):
        kind = {**kind, "kl_weight": 0.0}
    model = deep_model(**kind, **TOKENS)
    lengths, draws = draws_of(model, kind)
    _, others = draws_of(model, kind, seed=2)
    ratios = {"glance_ratio": 0.7, "mixed_ratio": 0.4}
    together = model(**packed_form(SOURCES, LABELS), **ratios, glance_draws=draws, mixed_draws=others).loss_sum
    alone = 0.0
    parts = zip(SOURCES, LABELS, draws.split(lengths), others.split(lengths), strict=True)
    for source, target, own, own_other in parts:
        shown = {**ratios, "glance_draws": own, "mixed_draws": own_other}
        alone += model(source[None], labels=target[None], **shown).loss_sum.item()
    assert together.item() == pytest.approx(alone, rel=1e-12)


def test_glancing_reaches_every_layer_of_one_token_a_slot():
    """Slots that saw their token have no loss in any layer."""
    model = deep_model(**KINDS["token"], **TOKENS)
    model.config.length_loss_weight = 0.0
    _, draws = draws_of(model, KINDS["token"])
    seen = model(**packed_form(SOURCES, LABELS), glance_ratio=0.6, glance_draws=draws)
    encoded, slots, targets = slots_of(model, SOURCES, LABELS)
    with torch.no_grad():
        first = model._slot_states(layers_by_hand(model, encoded, slots)[-1], encoded, slots)
    given = model.target.glanced(first, targets, model.target.align(first, targets), 0.6, draws)
    assert 0 < given.sum() < given.numel()
    tokens = torch.where(given, targets.tokens, slots.token_ids)

    hidden = layers_by_hand(model, encoded, replace(slots, token_ids=tokens))
    states = [model._slot_states(each, encoded, slots) for each in hidden]
    expected = sum(model.target.scores(each, targets, given).loss_sum.item() for each in states) / 3
    assert seen.loss_sum.item() == pytest.approx(expected, rel=1e-12)


def batch_of(keys: np.ndarray, slots: np.ndarray, **fields) -> PackedBatch:
    return PackedBatch(
        **{**dict.fromkeys(PackedBatch.__dataclass_fields__), "noise_keys": keys, "decoder_lengths": slots, **fields}
    )


def test_draws_of_a_slot_depend_on_its_sample_alone():
    keys, slots = np.array([5, 99, 7], np.uint64), np.array([4, 2, 3])
    glance, mixed = (batch_of(keys, slots).slot_draws(stream) for stream in (GLANCING_DRAWS, MIXED_DRAWS))
    assert not torch.equal(glance, mixed)
    assert ((mixed >= 0) & (mixed < 1)).all()
    assert torch.equal(batch_of(keys[1:], slots[1:]).slot_draws(MIXED_DRAWS), mixed[4:])


def test_the_objective_gives_the_model_ratio_and_draws():
    given = {"input_ids": SOURCES[0], "labels": LABELS[0], "cu_seqlens": torch.tensor([0, 4])}
    batch = batch_of(np.array([5], np.uint64), np.array([8]), **given)
    for kind in (Reconstruction, NgramMatches):
        inputs = kind(ObjectiveSettings(None, 2, 0.3)).inputs(batch, torch.device("cpu"), step=1)
        assert inputs["mixed_ratio"] == 0.3
        assert torch.equal(inputs["mixed_draws"], batch.slot_draws(MIXED_DRAWS))
        assert "glance_ratio" not in inputs
    assert "mixed_ratio" not in Reconstruction().inputs(batch, torch.device("cpu"), step=1)


def test_fixed_shapes_compute_the_same():
    model = deep_model(**KINDS["ctc"], **TOKENS).eval()
    graph = RectangularBnb(model)
    form = padded_form(SOURCES)
    path = graph(form["input_ids"], form["attention_mask"])
    best = model(**form, return_best=True, return_logits=False)
    for row, own, length in zip(path, best.best, best.decoder_lengths.tolist(), strict=True):
        assert row[:length].tolist() == own[:length].tolist()


def test_tied_halves_are_refused():
    with pytest.raises(ConfigError, match="tie_encoder_decoder makes them one: set one of the two to false"):
        bnb_config(deep_supervision=True, tie_encoder_decoder=True)


def test_a_model_without_head_says_what_it_lacks():
    with pytest.raises(ConfigError, match="BnbModel has no LM head for them; load the model as BnbForConditional"):
        BnbModel(bnb_config(deep_supervision=True))(SOURCES[0][None])


def test_mixed_training_needs_predictions():
    with pytest.raises(ConfigError, match=r"mixed_training .*: set model.deep_supervision to true"):
        check_mixed_training(bnb_config())
    check_mixed_training(bnb_config(deep_supervision=True))


@pytest.mark.parametrize("setting", [{"glancing": lambda step: 0.5}, {"ngram_size": 2}, {"mixed_training": 0.3}])
def test_ways_of_training_that_labels_do_not_have(setting):
    (name,) = setting
    system = BnbClassifier(get_task("sst2"), Lengths(16, 0), codec=None)
    with pytest.raises(ConfigError, match=f"{name}: model.kind bnb has none for task sst2; remove {name}"):
        system.objective(ObjectiveSettings(**setting))


def test_half_precision_is_near_to_float32():
    losses = []
    for dtype in (torch.float32, torch.bfloat16):
        model = deep_model(**KINDS["dag"]).to(dtype)
        with torch.no_grad():
            for feedback in model.model.decoder.feedback:
                feedback.reset()
        output = model(**packed_form(SOURCES, LABELS))
        output.loss.backward()
        assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
        losses.append(output.loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
