"""The model whose slots are a graph: loss, outputs, and glancing of all three targets."""

from __future__ import annotations

import copy

import pytest
import torch

from bnb_ds.errors import ConfigError
from bnb_ds.model.configuration import BnbConfig
from bnb_ds.model.slots import longest_targets, slots_of_targets
from bnb_ds.model.target_rules import check_ngrams
from tests.tiny import bnb_config, bnb_model, source_ids

pytestmark = pytest.mark.slow

TOKENS = {"decoder_tokens": True, "mask_token_id": 4}
DAG = {"target": "dag", "decoder_length_ratio": 2.0}
LABELS = [[2, 9, 9, 3], [2, 3], [2, 12, 7, 31, 8, 3]]


def inputs_of(lengths=(4, 3, 6)):
    rows = source_ids(list(lengths))
    return {
        "input_ids": torch.cat(rows),
        "cu_seqlens": torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32),
        "max_seqlen": max(lengths),
    }


def labels_of(labels=LABELS):
    return {
        "labels": torch.tensor([token for row in labels for token in row]),
        "label_lengths": torch.tensor([len(row) for row in labels]),
        "max_label_length": max(map(len, labels)),
    }


@pytest.mark.parametrize("more", [{}, TOKENS, {"decoder_length": "predicted", **TOKENS}])
def test_a_batch_is_the_sum_of_its_sequences(more):
    model = bnb_model(**DAG, **more)
    output = model(**inputs_of(), **labels_of(), return_best=True)
    alone = torch.zeros((), dtype=torch.float64)
    for row, labels in zip(source_ids([4, 3, 6]), LABELS, strict=True):
        alone += model(row[None], labels=torch.tensor([labels])).loss_sum
    assert output.loss_sum.item() == pytest.approx(alone.item(), rel=1e-12)
    assert output.loss_count.item() == sum(map(len, LABELS))
    assert output.num_infeasible.item() == 0
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_target_without_a_path_adds_nothing():
    model = bnb_model(**DAG, decoder_length_max=5)
    output = model(**inputs_of(), **labels_of())
    assert output.num_infeasible.item() == 1
    assert output.loss_count.item() == 6
    shorter = model(**inputs_of(), **labels_of([*LABELS[:2], [2, 12, 3]]))
    assert shorter.num_infeasible.item() == 0
    assert shorter.loss_sum.item() > output.loss_sum.item()


def test_the_best_of_a_forward_pass_is_what_generate_writes():
    model = bnb_model(**DAG, **TOKENS)
    from bnb_ds.decoding.decode import greedy_rows

    output = model(**inputs_of(), return_logits=False, return_best=True)
    rows = greedy_rows(output.best, output.decoder_lengths, model.config)
    for row, source in zip(rows, source_ids([4, 3, 6]), strict=True):
        generated = model.generate(source[None], return_scores=True)
        assert generated.sequences[0].tolist() == row.tolist()
        assert generated.lengths.item() == len(row)


def test_scores_are_log_probabilities_of_outputs():
    model = bnb_model(**DAG)
    source = source_ids([5])[0][None]
    generated = model.generate(source, return_scores=True, merge_duplicates=False)
    loss = model(source, labels=generated.sequences)
    assert generated.scores.item() == pytest.approx(-loss.loss_sum.item(), rel=1e-9)
    searched = model.generate(source, return_scores=True, strategy="beam", beam_size=50, length_penalty=0.0)
    assert searched.scores.item() >= generated.scores.item() - 1e-9


@pytest.mark.parametrize("strategy", ["greedy", "lookahead", "viterbi", "joint_viterbi", "beam"])
def test_outputs_do_not_depend_on_the_batch(strategy):
    model = bnb_model(**DAG, **TOKENS)
    rows = source_ids([4, 3, 6])
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    together = model.generate(ids, strategy=strategy, return_scores=True)
    for index, row in enumerate(rows):
        alone = model.generate(row[None], strategy=strategy, return_scores=True)
        length = alone.lengths.item()
        assert together.lengths[index].item() == length
        assert together.sequences[index, :length].tolist() == alone.sequences[0].tolist()


def test_lengths_are_kept_by_joint_viterbi():
    model = bnb_model(**DAG)
    source = source_ids([6])[0][None]
    for length in (3, 7):
        options = {"min_length": length, "max_length": length, "merge_duplicates": False}
        assert model.generate(source, strategy="joint_viterbi", **options).shape[1] == length


@pytest.mark.parametrize(
    "target",
    [
        {"target": "ctc"},
        {"target": "token", "decoder_length": "predicted"},
        {"target": "dag"},
        {"target": "dag", "decoder_length": "predicted"},
    ],
)
def test_glancing_with_ratio_0_is_the_plain_step_bit_for_bit(target):
    dropout = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2}
    model = bnb_model(encoder=dropout, decoder=dropout, **target, **TOKENS).train()
    slots = int(model(**inputs_of(), **labels_of()).decoder_lengths.sum())
    draws = torch.rand(slots, generator=torch.Generator().manual_seed(1))

    def step(**more):
        model.zero_grad()
        torch.manual_seed(7)
        loss = model(**inputs_of(), **labels_of(), **more).loss_sum
        loss.backward()
        return loss, model.model.latent.weight.grad.clone()

    plain, gradient = step()
    glanced, same_gradient = step(glance_ratio=0.0, glance_draws=draws)
    assert plain.item() == pytest.approx(glanced.item(), rel=1e-13)
    assert torch.allclose(gradient, same_gradient, rtol=1e-12, atol=0)
    if target["target"] != "token":  # that one sums up its loss in another order
        assert torch.equal(plain, glanced)
        assert torch.equal(gradient, same_gradient)
    shown, _ = step(glance_ratio=0.9, glance_draws=draws)
    assert shown.item() != plain.item()
    model.eval()
    assert torch.equal(step(glance_ratio=0.9, glance_draws=draws)[0], step()[0])


@pytest.mark.parametrize("target", [{"target": "ctc"}, {"target": "dag"}])
def test_glancing_does_not_depend_on_micro_batches(target):
    model = bnb_model(**target, **TOKENS).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
    model.config.encoder.attention_probs_dropout_prob = model.config.decoder.attention_probs_dropout_prob = 0.0
    lengths = model(**inputs_of(), **labels_of()).decoder_lengths.tolist()
    draws = torch.rand(sum(lengths), generator=torch.Generator().manual_seed(1))
    together = model(**inputs_of(), **labels_of(), glance_ratio=0.8, glance_draws=draws).loss_sum
    alone = torch.zeros((), dtype=torch.float64)
    for row, labels, own in zip(source_ids([4, 3, 6]), LABELS, draws.split(lengths), strict=True):
        labelled = torch.tensor([labels])
        alone += model(row[None], labels=labelled, glance_ratio=0.8, glance_draws=own).loss_sum
    assert together.item() == pytest.approx(alone.item(), rel=1e-12)


def test_slots_of_predicted_targets():
    token = bnb_config(decoder_length="predicted")
    assert slots_of_targets(torch.tensor([1, 2, 9]), token).tolist() == [1, 2, 9]
    dag = bnb_config(decoder_length="predicted", target="dag", decoder_length_ratio=2.5, link_positions=20)
    assert slots_of_targets(torch.tensor([1, 2, 3, 5]), dag).tolist() == [1, 2, 4, 9]
    longest = longest_targets(dag)
    assert slots_of_targets(torch.tensor([longest, longest + 1]), dag).tolist() == [19, 22]
    assert longest_targets(bnb_config()) is None


def test_a_ctc_model_becomes_a_graph_and_back(tmp_path):
    model = bnb_model(dtype=torch.float32)
    model.save_pretrained(tmp_path / "ctc")
    config = copy.deepcopy(model.config)
    config.target = "dag"
    graph = type(model).from_pretrained(tmp_path / "ctc", config=config)
    assert torch.equal(graph.model.latent.weight, model.model.latent.weight)
    graph.save_pretrained(tmp_path / "dag")
    again = type(model).from_pretrained(tmp_path / "dag")
    assert again.config.target == "dag"
    assert torch.equal(again.links.query.weight, graph.links.query.weight)
    back = type(model).from_pretrained(tmp_path / "dag", target="ctc")
    source = source_ids([5])[0][None]
    assert torch.equal(back.generate(source), model.generate(source))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"target": "rnn"}, "target is 'rnn': use one of: ctc, token, dag"),
        ({"target": "token"}, "decoder_length is 'source': set decoder_length to 'predicted'"),
        ({"target": "dag", "decoder_length": "padded"}, "target 'dag' has no padded slots"),
        ({"target": "dag", "kl_weight": 0.1}, "kl_weight is 0.1: target 'dag' has no smoothing term"),
        (
            {"target": "dag", "link_heads": 3, "decoder": {"model_type": "electra", "embedding_size": 8}},
            "link_heads is 3: give a divisor of decoder.embedding_size, 8",
        ),
        (
            {"head_transform": False, "decoder": {"model_type": "electra", "embedding_size": 8}},
            "head_transform is false, but decoder.embedding_size 8 is not its hidden_size 256, .* set it to true",
        ),
        ({"target": "dag", "link_heads": 5}, "link_heads is 5: give a divisor of decoder.hidden_size, 12"),
        ({"target": "dag", "link_positions": 1}, "link_positions is 1: give a value of at least 2"),
        ({"decoder_tokens": True}, "decoder_tokens needs mask_token_id"),
        ({"target": "dag", **TOKENS, "eos_token_id": None}, "needs bos_token_id and eos_token_id"),
    ],
)
def test_refused_settings(fields, message):
    with pytest.raises(ConfigError, match=message):
        BnbConfig(**{"bos_token_id": 2, "eos_token_id": 3, **bnb_config().to_dict(), **fields})


def test_refused_inputs():
    model = bnb_model(**DAG, link_positions=8)
    source = source_ids([6])[0][None]
    with pytest.raises(ConfigError, match="a source of 6 tokens needs a graph of 12 slots, but link_positions is 8"):
        model(source)
    source = source_ids([3])[0][None]
    for options, message in (
        ({"strategy": "guess"}, "strategy is 'guess'"),
        ({"strategy": 3}, "strategy is 3: known: beam, greedy"),
        ({"strategy": ""}, "strategy is '': known: beam, greedy"),
        ({"lookahead_beta": -1.0}, "lookahead_beta is -1.0: give a finite number of at least 0"),
        ({"length_penalty": 11.0}, "length_penalty is 11.0: give a number from 0 to 10"),
        ({"max_length": 4}, "strategy 'lookahead' keeps to no min_length or max_length"),
        ({"beam_size": 4, "strategy": "greedy"}, "beam_size is 4, but strategy is 'greedy'"),
    ):
        with pytest.raises(ConfigError, match=message):
            model.generate(source, **options)
    with pytest.raises(ConfigError, match="the model's target is 'ctc': leave it out, or make a graph of this model"):
        bnb_model().generate(source, strategy="lookahead")


@pytest.mark.parametrize(
    ("fields", "given", "error", "message"),
    [
        (TOKENS, {"glance_ratio": 2.0}, ValueError, r"glance_ratio is 2\.0: give a number from 0 to 1"),
        (TOKENS, {"glance_ratio": float("nan")}, ValueError, "glance_ratio is nan: give a number from 0 to 1"),
        (TOKENS, {"glance_ratio": 0.5}, ValueError, "needs glance_draws, one for each of 12 slots, not none"),
        (
            TOKENS,
            {"glance_ratio": 0.5, "glance_draws": torch.rand(7)},
            ValueError,
            r"glance_draws, one for each of 12 slots, not those of shape \(7,\)",
        ),
        ({}, {"glance_ratio": 0.5, "glance_draws": torch.rand(12)}, ConfigError, "set decoder_tokens to true"),
        ({}, {"mixed_ratio": -0.1}, ValueError, r"mixed_ratio is -0\.1: give a number from 0 to 1"),
    ],
)
def test_ratios_that_are_none_are_refused(fields, given, error, message):
    source = torch.stack(source_ids([3, 3]))
    labels = torch.tensor([[2, 9, 3], [2, 9, 3]])
    with pytest.raises(error, match=message):
        bnb_model(**DAG, **fields).train()(source, labels=labels, **given)


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize(
    "target",
    [{"target": "ctc"}, DAG, {"decoder_length": "predicted", "target": "dag"}],
    ids=["ctc", "dag", "predicted"],
)
def test_the_loss_of_ngrams_is_a_mean_over_sequences(target, size):
    model = bnb_model(**target, **TOKENS)
    output = model(**inputs_of(), **labels_of(), ngram_size=size)
    alone = sum(
        model(row[None], labels=torch.tensor([labels]), ngram_size=size).loss_sum
        for row, labels in zip(source_ids([4, 3, 6]), LABELS, strict=True)
    )
    assert output.loss_sum.item() == pytest.approx(alone.item(), rel=1e-12)
    assert output.loss_count.item() == 3
    assert output.num_infeasible.item() == 0
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("target", [{"target": "ctc"}, DAG], ids=["ctc", "dag"])
def test_training_on_ngrams_raises_their_matches(target):
    model = bnb_model(dtype=torch.float32, **target)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        losses.append(model(**inputs_of(), **labels_of(), ngram_size=2).loss)
        losses[-1].backward()
        optimizer.step()
    assert 0 <= losses[-1] < 0.5 < 0.9 < losses[0] <= 1


@pytest.mark.parametrize(
    ("target", "size", "message"),
    [
        ({"decoder_length": "predicted"}, 2, "a model of one token a slot has no loss of n-grams; remove ngram_size"),
        ({"target": "ctc"}, 3, "ngram_size 3: CTC has a loss of n-grams of 1 or 2 tokens; set ngram_size to 2"),
    ],
)
def test_losses_of_ngrams_that_do_not_exist(target, size, message):
    with pytest.raises(ConfigError, match=message):
        check_ngrams(bnb_config(**target), size)
