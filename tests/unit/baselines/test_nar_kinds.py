"""The non-autoregressive kinds: their settings, their loss in training, and what they refuse."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F
from transformers import BertForMaskedLM

from bnb_ds.data.batch import MIXED_DRAWS, batch_of_texts
from bnb_ds.data.tokenization import tokenizer_from_vocabulary
from bnb_ds.errors import ConfigError
from bnb_ds.evaluate.model import evaluate_model
from bnb_ds.finetune.recipe import FinetuneRecipe
from bnb_ds.model.flops import forward_flops
from bnb_ds.systems.kinds import system_class
from bnb_ds.tasks.codec import Codec
from bnb_ds.tasks.registry import get_task
from bnb_ds.tasks.text_lengths import Lengths
from bnb_ds.train.objectives import ObjectiveSettings
from tests.tiny import VOCAB, bert_config, packed_form, source_ids

SIZE = {
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 24,
    "initializer_range": 0.3,
}
KINDS = ("nat", "inat", "cmlm", "elmer")
SOURCES, TARGETS = source_ids([7, 1, 10, 3]), source_ids([4, 9, 2, 6], seed=2)
KEYS = torch.arange(1, 5).numpy().astype("uint64") * 2**40


def tokenizer(size: int = VOCAB):
    words = [f"w{i}" for i in range(size - 5)]
    return tokenizer_from_vocabulary(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words], lowercase=False)


def section_of(kind, **fields):
    values = {"output_dir": "run", "steps": 1, "task": "translation", "model": {"kind": kind, **fields}}
    return FinetuneRecipe.model_validate(values).model


def system_of(kind, target=None, lengths=None, **fields):
    task, one = get_task("translation"), tokenizer()
    fields = fields if "encoder" in fields or "checkpoint" in fields else {"size": SIZE, **fields}
    return system_class(kind, task)(
        task, lengths or Lengths(20, 12), Codec(one, target or one), section_of(kind, **fields)
    )


def batch_for(system, keys=KEYS):
    sources, targets = packed_form(SOURCES), packed_form(TARGETS)
    return batch_of_texts(
        sources["input_ids"].numpy(),
        sources["cu_seqlens"].long().numpy(),
        targets["input_ids"].numpy(),
        targets["cu_seqlens"].long().numpy(),
        system.target_rules,
        sample_ids=torch.arange(4).numpy(),
        noise_keys=keys,
        num_ordinary=21,
        num_masked=0,
    )


def still(kind, **fields):
    return system_of(kind, hidden_dropout=0.0, attention_dropout=0.0, **fields)


def test_what_a_kind_fixes():
    for kind in KINDS:
        config = system_of(kind).config()
        assert (config.target_kind, config.decoder_length, config.decoder_positions) == (
            "token",
            "predicted",
            "absolute",
        )
        assert config.decoder_tokens
        assert not config.decoder_latent
        assert config.slot_tokens == ("source" if kind in ("nat", "inat") else "mask")
        assert config.refined_tokens == ("all" if kind == "inat" else "unsure")
        assert config.deep_supervision == (kind == "elmer")
    assert system_of("nat").config().decoding == {}
    assert system_of("nat", length_beam=3).config().decoding == {"length_beam": 3}
    assert system_of("inat").config().decoding == {"refinement": 9}
    assert system_of("inat", iterations=1).config().decoding == {}
    assert system_of("cmlm").config().decoding == {"length_beam": 5, "refinement": 9}
    assert system_of("cmlm", iterations=1, length_beam=1).config().decoding == {}
    assert system_of("elmer", exit_entropy=0.5).config().decoding == {"exit_entropy": 0.5}


def test_the_default_is_transformer_base():
    config = system_class("nat", get_task("translation"))(
        get_task("translation"), Lengths(20, 12), Codec(tokenizer(), tokenizer()), section_of("nat")
    ).config()
    for half in (config.encoder, config.decoder):
        shape = (half.hidden_size, half.num_hidden_layers, half.num_attention_heads, half.intermediate_size)
        assert shape == (512, 6, 8, 2048)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_from_bert_and_from_a_model_of_its_own(kind, tmp_path):
    torch.manual_seed(0)
    bert = BertForMaskedLM(bert_config())
    bert.save_pretrained(tmp_path / "bert")
    system = system_of(kind, encoder=str(tmp_path / "bert"))
    model = system.build()
    assert model.model.encoder.layer[1].output.dense.weight.equal(bert.bert.encoder.layer[1].output.dense.weight)
    assert model.model.decoder.embeddings.token_gate.item() == 1.0
    model.save_pretrained(tmp_path / "own")
    again = system_of(kind, checkpoint=str(tmp_path / "own"))
    assert again.config().kl_weight == model.config.kl_weight
    assert all(torch.equal(weight, again.build().state_dict()[name]) for name, weight in model.state_dict().items())
    assert system_of(kind, checkpoint=str(tmp_path / "own"), label_smoothing=0.5).config().kl_weight == 1.0


def test_label_smoothing_is_that_of_torch():
    """Up to a factor 1 - e and a constant: so are its gradients, and Adam does not see the factor."""
    system = still("nat", label_smoothing=0.2, length_loss_weight=0.0)
    model, batch = system.build().train(), batch_for(system)
    output = model(**batch.model_inputs(torch.device("cpu")), return_logits=True)
    theirs = F.cross_entropy(output.logits, batch.labels, label_smoothing=0.2, reduction="sum")
    constant = 0.2 * torch.log(torch.tensor(float(VOCAB))) * batch.labels.numel()
    assert (0.8 * output.loss_sum + constant).item() == pytest.approx(theirs.item(), rel=1e-5)


def test_the_loss_of_inat_is_the_mean_of_its_passes():
    system = still("inat", passes=3, noise_share=0.5)
    model, batch = system.build().train(), batch_for(system)
    loss = system.objective().loss_sum(model, batch, torch.device("cpu"), 1)
    rewrites = system.objective().inputs(batch, torch.device("cpu"), 1)["rewrites"]
    assert (rewrites >= 0).any()
    assert (rewrites < 0).any()
    encoded = model.model.encode(model.model.pack(**packed_form(SOURCES)))
    slots = model.model.open(encoded, batch.label_lengths)
    passes, held = [], slots.token_ids
    for number in range(3):
        states = model.states(encoded, type(slots)(**{**vars(slots), "token_ids": held}))
        logits = F.linear(states.hidden, states.weight, states.bias)
        nats = F.cross_entropy(logits, batch.labels, reduction="sum")
        uniform = -logits.log_softmax(1).mean(1).sum() - batch.labels.numel() * torch.log(torch.tensor(float(VOCAB)))
        passes.append(nats + model.config.kl_weight * uniform)
        if number < 2:
            held = [new if new >= 0 else old for new, old in zip(rewrites[number], logits.argmax(1), strict=True)]
            held = torch.stack(held)
    lengths = model.model.length_predictor.nll(
        encoded.length_logits, torch.tensor([len(source) for source in SOURCES]), batch.label_lengths
    )
    expected = sum(passes) / 3 + 0.1 * (lengths * batch.label_lengths).sum()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters()), "partitioned training waits for all"
    assert "rewrites" not in system_of("inat", passes=1, iterations=1).objective().inputs(batch, torch.device("cpu"), 1)


def test_cmlm_predicts_masked_tokens_beside_those_it_sees():
    system = still("cmlm")
    model, batch = system.build().train(), batch_for(system)
    objective = system.objective()
    loss = objective.loss_sum(model, batch, torch.device("cpu"), 1)
    masked = batch.masked_targets()
    assert objective.count(batch) == int(masked.sum()) < batch.labels.numel()
    encoded = model.model.encode(model.model.pack(**packed_form(SOURCES)))
    slots = model.model.open(encoded, batch.label_lengths)
    seen = torch.where(masked, 4, batch.labels)
    states = model.states(encoded, type(slots)(**{**vars(slots), "token_ids": seen}))
    logits = F.linear(states.hidden, states.weight, states.bias)[masked]
    nats = F.cross_entropy(logits, batch.labels[masked], reduction="sum")
    uniform = -logits.log_softmax(1).mean(1).sum() - masked.sum() * torch.log(torch.tensor(float(VOCAB)))
    lengths = model.model.length_predictor.nll(
        encoded.length_logits, torch.tensor([len(source) for source in SOURCES]), batch.label_lengths
    )
    of_sequences = torch.stack([part.sum() for part in masked.split(batch.label_lengths.tolist())])
    expected = nats + model.config.kl_weight * uniform + 0.1 * (lengths * of_sequences).sum()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    plain = model.eval()(**batch.model_inputs(torch.device("cpu")))
    assert plain.loss_count.item() == batch.labels.numel(), "evaluation: the loss of the first pass, which sees nothing"


def test_elmer_mixes_right_tokens_in():
    system = system_of("elmer")
    batch = batch_for(system)
    inputs = system.objective().inputs(batch, torch.device("cpu"), 1)
    assert inputs["mixed_ratio"] == 0.3
    assert torch.equal(inputs["mixed_draws"], batch.slot_draws(MIXED_DRAWS))
    assert (
        system.objective(ObjectiveSettings(mixed_training=0.6)).inputs(batch, torch.device("cpu"), 1)["mixed_ratio"]
        == 0.6
    )
    assert "mixed_ratio" not in system_of("elmer", mixed_training=0.0).objective().inputs(batch, torch.device("cpu"), 1)


@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_gradients_do_not_depend_on_micro_batches(kind):
    system = still(kind)
    torch.manual_seed(3)
    model = system.build().train()
    objective, whole = system.objective(), batch_for(system)
    total = objective.loss_sum(model, whole, torch.device("cpu"), 1)
    parts = 0.0
    for row in range(4):
        one = batch_of_texts(
            SOURCES[row].numpy(),
            torch.tensor([0, len(SOURCES[row])]).numpy(),
            TARGETS[row].numpy(),
            torch.tensor([0, len(TARGETS[row])]).numpy(),
            system.target_rules,
            sample_ids=torch.tensor([row]).numpy(),
            noise_keys=KEYS[row : row + 1],
            num_ordinary=1,
            num_masked=0,
        )
        parts += objective.loss_sum(model, one, torch.device("cpu"), 1).item()
    assert total.item() == pytest.approx(parts, rel=1e-5)


def test_the_cost_of_inat_has_the_passes_of_its_decoder():
    costs = {kind: still(kind).flops(still(kind).config(), batch_for(still(kind))) for kind in ("nat", "inat")}
    lengths = batch_for(still("nat")).source_lengths, batch_for(still("nat")).decoder_lengths
    config = still("inat").config()
    assert costs["nat"] == forward_flops(config, *lengths)
    assert costs["inat"] == forward_flops(config, *lengths, decoder_passes=4)


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("nat", {"latent_size": 8}, "Extra inputs are not permitted"),
        ("nat", {"encoder": "a", "size": SIZE}, "give encoder or size, not both"),
        ("nat", {"checkpoint": "a", "encoder": "b"}, "give checkpoint or encoder, not both"),
        ("inat", {"iterations": 0}, "greater than or equal to 1"),
        ("elmer", {"exit_entropy": -1.0}, "greater than or equal to 0"),
    ],
)
def test_sections_refuse(kind, fields, message):
    with pytest.raises(ValidationError, match=message):
        section_of(kind, **fields)


def test_systems_refuse():
    with pytest.raises(ConfigError, match=r"data.target_tokenizer: kind nat copies the source's tokens .* remove"):
        system_of("nat", tokenizer(VOCAB - 3)).config()
    system_of("elmer", tokenizer(VOCAB - 3)).config()
    for kind in ("inat", "cmlm", "elmer"):
        with pytest.raises(ConfigError, match="ngram_size: a model of one token a slot has no loss of n-grams"):
            system_of(kind).objective(ObjectiveSettings(ngram_size=2))
    for kind in ("inat", "cmlm"):
        with pytest.raises(ConfigError, match=f"glancing: kind {kind} has its own noise; remove glancing"):
            system_of(kind).objective(ObjectiveSettings(glancing=lambda step: 0.5))
    with pytest.raises(ConfigError, match=r"has no smoothing term: set model.label_smoothing to 0"):
        system_of("nat").objective(ObjectiveSettings(glancing=lambda step: 0.5))
    system_of("nat", label_smoothing=0.0).objective(ObjectiveSettings(glancing=lambda step: 0.5))
    with pytest.raises(ConfigError, match="mixed_training replaces what the decoder's layers predict"):
        system_of("inat").objective(ObjectiveSettings(mixed_training=0.5))
    with pytest.raises(ConfigError, match=r"data.max_target_length 30: the decoder has 24 positions; set it to 24"):
        system_of("nat", lengths=Lengths(20, 30)).config()
    with pytest.raises(ConfigError, match=r"model.kind inat: task sst2 needs labels; give one of: bnb, classifier"):
        system_class("inat", get_task("sst2"))
    with pytest.raises(ConfigError, match=r"data.max_source_length 30: the encoder has 24 positions; set it to 24"):
        system_of("nat", lengths=Lengths(30, 12)).config()


def saved(folder, kind, **fields):
    system = system_of(kind, **fields)
    torch.manual_seed(1)
    model = system.build()
    folder.mkdir()
    model.save_pretrained(folder)
    system.save_files(model.config, folder)
    return folder


def test_evaluation_with_true_lengths_beside_the_honest_one(tmp_path):
    model = saved(tmp_path / "model", "inat")
    rows = "".join(f'{{"source": "w{i} w{i + 1} w3", "target": "{" w9" * (i + 1)}"}}\n' for i in range(9))
    (tmp_path / "rows.jsonl").write_text(rows)
    overrides = [f"data.validation={tmp_path / 'rows.jsonl'}", f"data.cache_dir={tmp_path / 'cache'}"]
    honest = evaluate_model(model, overrides=overrides)
    oracle = evaluate_model(model, overrides=overrides, oracle_length=True)
    assert honest.directory == model / "evaluation" / "translation-validation"
    assert oracle.directory == model / "evaluation" / "translation-validation-oracle_length"
    assert (honest.results["oracle_length"], oracle.results["oracle_length"]) == (False, True)
    assert honest.scores["loss"] == oracle.scores["loss"]
    texts = (oracle.directory / "generated_predictions.txt").read_text()
    assert texts != (honest.directory / "generated_predictions.txt").read_text()
    one_pass = evaluate_model(model, overrides=overrides, decoding={"refinement": 0})
    assert one_pass.directory == model / "evaluation" / "translation-validation-refinement_0"
    assert one_pass.results["decoding"] == {"refinement": 0}
    alone = (one_pass.directory / "generated_predictions.txt").read_text()
    assert alone != (honest.directory / "generated_predictions.txt").read_text()
    again = saved(tmp_path / "again", "inat", iterations=1)
    assert (evaluate_model(again, overrides=overrides).directory / "generated_predictions.txt").read_text() == alone
    with pytest.raises(ConfigError, match=r"^--length-beam with --oracle-length: no lengths are tried where each"):
        evaluate_model(model, overrides=overrides, oracle_length=True, decoding={"length_beam": 3})
    with pytest.raises(ConfigError, match=r"exit_entropy is 1.0: only models with deep_supervision"):
        evaluate_model(model, overrides=overrides, decoding={"exit_entropy": 1.0})
    shape = {**SIZE, "encoder_layers": 1, "decoder_layers": 1}
    del shape["num_hidden_layers"]
    other = saved(tmp_path / "other", "transformer", size=shape)
    with pytest.raises(ConfigError, match=r"--length-beam: .*other is a model of kind transformer, which has no such"):
        evaluate_model(other, overrides=overrides, decoding={"length_beam": 2})
    with pytest.raises(ConfigError, match=r"--oracle-length: .*other predicts no lengths"):
        evaluate_model(other, overrides=overrides, oracle_length=True)
    ctc = saved(tmp_path / "ctc", "bnb")
    with pytest.raises(
        ConfigError, match=r"--oracle-length: .*ctc predicts no lengths; give a model with decoder_length"
    ):
        evaluate_model(ctc, overrides=overrides, oracle_length=True)
