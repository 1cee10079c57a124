"""Layer distillation against plain formulas over all logits and states, in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional as F

from bnb_ds.errors import ConfigError
from bnb_ds.model.students.imitation import Anchor, LayerTeacher, check_teacher, match_layers
from bnb_ds.model.students.slot_kl import Projected, slot_kl
from tests.tiny import ENCODER_ALONE, bnb_config, bnb_model, packed_form, padded_form, source_ids

SOURCES, TARGETS = source_ids([7, 1, 10, 3]), source_ids([4, 1, 9, 5], seed=2)
KINDS = {
    "ctc": {},
    "one loss a sample": {"loss_reduction": "sample"},
    "token": {"decoder_length": "predicted"},
    "dag": {"target": "dag", "link_positions": 64},
    "tokens": {"decoder_tokens": True, "mask_token_id": 4},
    "encoder alone": ENCODER_ALONE,
}


def depths(encoder, decoder):
    return {"encoder": {"num_hidden_layers": encoder}, "decoder": {"num_hidden_layers": decoder}}


def states_of_layers(half):
    """Hooks that collect the outputs of a half's layers."""
    kept = []
    for layer in half.layer:
        layer.register_forward_hook(lambda _module, _inputs, output: kept.append(output[0]))
    return kept


@pytest.mark.parametrize("chunk", [1, 3, 100])
@pytest.mark.parametrize("sizes", [(5, 5), (5, 3)], ids=str)
def test_the_divergence_and_its_gradients_are_those_of_all_logits(chunk, sizes, monkeypatch):
    monkeypatch.setattr("bnb_ds.model.students.slot_kl.default_chunk_tokens", lambda weight, rows: chunk)
    torch.manual_seed(0)
    student, teacher = (
        Projected(*(torch.randn(shape, dtype=torch.float64) for shape in ((7, size), (11, size), (11,))))
        for size in sizes
    )
    weights = torch.rand(7, dtype=torch.float64)
    own, plain = ([value.clone().requires_grad_() for value in vars(student).values()] for _ in range(2))
    loss = 2 * slot_kl(Projected(*own), teacher, weights)
    loss.backward()
    log_q = F.log_softmax(F.linear(*plain), -1)
    log_p = F.log_softmax(F.linear(*vars(teacher).values()), -1)
    expected = 2 * ((log_p.exp() * (log_p - log_q)).sum(-1) * weights).sum()
    expected.backward()
    torch.testing.assert_close(loss, expected)
    for got, wanted in zip(own, plain, strict=True):
        torch.testing.assert_close(got.grad, wanted.grad)


def test_the_divergence_in_sixteen_bits_is_near():
    torch.manual_seed(0)
    student, teacher = (Projected(*(torch.randn(shape) for shape in ((7, 5), (11, 5), (11,)))) for _ in range(2))
    half = [Projected(*(value.bfloat16() for value in vars(each).values())) for each in (student, teacher)]
    loss = slot_kl(*half, torch.ones(7))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, slot_kl(student, teacher, torch.ones(7)), rtol=0.05, atol=0.0)


def test_other_slots_or_tokens_are_refused():
    one = Projected(torch.zeros(3, 2), torch.zeros(5, 2), torch.zeros(5))
    more = Projected(torch.zeros(4, 2), torch.zeros(5, 2), torch.zeros(5))
    with pytest.raises(
        ValueError, match="the student has 3 slots over 5 tokens and the teacher 4 over 5: give the same"
    ):
        slot_kl(one, more, torch.ones(3))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_that_of_plain_sums_over_sequences(kind):
    alone = kind == "encoder alone"
    student, teacher = (
        bnb_model(seed, **{**KINDS[kind], **depths(*both)}) for seed, both in ((0, (2, 1)), (1, (3, 3)))
    )
    layers = match_layers(student.config, teacher.config, {})
    assert layers == ({"encoder": [1, 2]} if alone else {"encoder": [1, 2], "decoder": [2]})
    plain_student, plain_teacher = copy.deepcopy(student), copy.deepcopy(teacher)
    teaches = LayerTeacher(teacher, layers, hidden=0.7, logits=0.3)
    inputs = packed_form(SOURCES, TARGETS)
    own = student(**inputs)
    output = student(**inputs, further=teaches)
    added = output.loss_sum - own.loss_sum
    output.loss_sum.backward()

    kept = {
        name: {half: states_of_layers(getattr(model.model, half)) for half in layers}
        for name, model in (("student", plain_student), ("teacher", plain_teacher))
    }
    expected = torch.zeros((), dtype=torch.float64)
    for source, target in zip(SOURCES, TARGETS, strict=True):
        for states in (each for halves in kept.values() for each in halves.values()):
            states.clear()
        outputs = [
            model(**packed_form([source], [target]), return_logits=True) for model in (plain_student, plain_teacher)
        ]
        log_q, log_p = (F.log_softmax(each.logits, -1) for each in outputs)
        divergence = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
        distances = [
            (kept["student"][half][place] - kept["teacher"][half][layer]).square().mean()
            for half, matched in layers.items()
            for place, layer in enumerate(matched)
        ]
        weight = 1 if kind == "one loss a sample" else len(target)
        expected = expected + weight * (0.3 * divergence + 0.7 * torch.stack(distances).mean())
    torch.testing.assert_close(added, expected)
    (plain_student(**inputs).loss_sum + expected).backward()
    for (name, got), wanted in zip(student.named_parameters(), plain_student.parameters(), strict=True):
        torch.testing.assert_close(got.grad, wanted.grad, msg=lambda text, name=name: f"{name}: {text}")
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_a_student_that_is_its_teacher_has_nothing_to_learn():
    model = bnb_model(**depths(2, 3))
    layers = match_layers(model.config, model.config, {})
    teaches = LayerTeacher(copy.deepcopy(model).train(), layers, hidden=1.0, logits=1.0)
    inputs = packed_form(SOURCES, TARGETS)
    torch.testing.assert_close(model(**inputs, further=teaches).loss_sum, model(**inputs).loss_sum)


def test_padded_and_packed_students_learn_the_same():
    student, teacher = bnb_model(0, **depths(2, 1)), bnb_model(1, **depths(2, 2))
    teaches = LayerTeacher(teacher, match_layers(student.config, teacher.config, {}), hidden=1.0, logits=1.0)
    losses = [student(**form(SOURCES, TARGETS), further=teaches).loss_sum for form in (packed_form, padded_form)]
    torch.testing.assert_close(*losses)


def test_dropout_of_a_student_is_as_without_a_teacher():
    student, teacher = bnb_model(0).train(), bnb_model(1)
    teaches = LayerTeacher(teacher, match_layers(student.config, teacher.config, {}), hidden=0.0, logits=1e-30)
    losses = []
    for further in (None, teaches):
        torch.manual_seed(3)
        losses.append(student(**packed_form(SOURCES, TARGETS), further=further).loss_sum)
    torch.testing.assert_close(*losses)


def test_layers_may_be_chosen():
    student, teacher = bnb_config(**depths(2, 1)), bnb_config(**depths(4, 3))
    chosen = {"encoder": [0, 3], "decoder": None}
    assert match_layers(student, teacher, chosen) == {"encoder": [0, 3], "decoder": [2]}
    for wrong in ([0], [0, 4], [-1, 2]):
        message = (
            r"layers.encoder is \[.*\]: give 2 numbers of 0 to 3, the teacher's layer for each layer of the student"
        )
        with pytest.raises(ConfigError, match=message):
            match_layers(student, teacher, {"encoder": wrong})
    with pytest.raises(ConfigError, match=r"layers.encoder: the student has 4 layers and the teacher 2; say for each"):
        match_layers(teacher, student, {})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"decoder_length_ratio": 3.0, "decoder_positions": "absolute"},
            "decoder_length_ratio is 3.0, and 2.0 in the te",
        ),
        (
            {"decoder_tokens": True, "mask_token_id": 4},
            "decoder_tokens is True, and False in the teacher: both must open",
        ),
        ({"target": "dag"}, "target_kind is 'dag', and 'ctc' in the teacher"),
        (
            {"decoder": {"hidden_size": 15}},
            "hidden is 1.0, but hidden states of the decoder have 15 numbers and the tea",
        ),
    ],
    ids=str,
)
def test_a_teacher_of_other_slots_or_widths_is_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        check_teacher(bnb_config(**fields), bnb_config(), hidden=1.0)
    check_teacher(bnb_config(decoder={"hidden_size": 15}), bnb_config(), hidden=0.0)


@pytest.mark.parametrize("reduction", ["token", "sample"])
def test_the_anchor_is_the_squared_distance_of_target_embeddings(reduction):
    model = bnb_model(**ENCODER_ALONE, loss_reduction=reduction)
    originals = torch.randn(model.config.vocab_size, 12, dtype=torch.float64)
    inputs = packed_form(SOURCES, TARGETS)
    anchor = Anchor(originals[torch.cat(TARGETS)], 0.4)
    added = model(**inputs, further=anchor).loss_sum - model(**inputs).loss_sum
    weight = model.get_output_embeddings().weight
    of_each = [(weight[target] - originals[target]).square().sum(-1) for target in TARGETS]
    expected = sum(each.sum() if reduction == "token" else each.mean() for each in of_each)
    torch.testing.assert_close(added, 0.4 * expected)
