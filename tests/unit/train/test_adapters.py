"""Adapters: the merged model computes what the model with adapters computes, also where modules share their weights."""

from __future__ import annotations

import importlib
import json

import pytest
import torch
import yaml
from torch import nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    EncoderDecoderConfig,
    OpenAIGPTConfig,
    OpenAIGPTForSequenceClassification,
)

from bnb_ds.baselines.build import SHARED_HALVES, model_of
from bnb_ds.checkpoint.merging import merged, plain_weights
from bnb_ds.config.parameters_section import ParametersSection
from bnb_ds.errors import CheckpointError, ConfigError
from bnb_ds.train.parameters.chosen import choose, names_of
from tests import tiny

pytest.importorskip("peft", reason='needs peft (`pip install ".[lora]"` in the checkout)')

EVERYTHING = ["self-attention", "cross-attention", "dense"]


def bert2bert(*, tied: bool) -> nn.Module:
    decoder = tiny.bert_config(is_decoder=True, add_cross_attention=True)
    special = {"vocab_size": tiny.VOCAB, "pad_token_id": 0, "decoder_start_token_id": 1, "eos_token_id": 3}
    config = EncoderDecoderConfig.from_encoder_decoder_configs(
        tiny.bert_config(), decoder, **special, **{SHARED_HALVES: tied}
    )
    return model_of(config)


def bart() -> nn.Module:
    sizes = {f"{half}_{name}": n for half in ("encoder", "decoder") for name, n in (("layers", 2), ("ffn_dim", 20))}
    heads = {"encoder_attention_heads": 3, "decoder_attention_heads": 3}
    return BartForConditionalGeneration(BartConfig(vocab_size=tiny.VOCAB, d_model=12, init_std=0.2, **sizes, **heads))


def gpt() -> nn.Module:
    sizes = {"vocab_size": tiny.VOCAB, "n_embd": 12, "n_layer": 2, "n_head": 3, "n_positions": 24}
    return OpenAIGPTForSequenceClassification(OpenAIGPTConfig(**sizes, pad_token_id=0, initializer_range=0.2))


MODELS = {
    "bnb": tiny.bnb_model,
    "bnb, tied halves": lambda: tiny.bnb_model(tie_encoder_decoder=True),
    "bert2bert": lambda: bert2bert(tied=False),
    "bert2bert, tied halves": lambda: bert2bert(tied=True),
    "bart": bart,
    "gpt": gpt,
}
#: matrices with adapters of their own, among those of two layers: six in an encoder's, ten in a decoder's
ADAPTED = {"bnb": 32, "bnb, tied halves": 20, "bert2bert": 32, "bert2bert, tied halves": 20, "bart": 32, "gpt": 8}


def logits_of(name: str, model: nn.Module) -> torch.Tensor:
    if name.startswith("bnb"):
        return model(**tiny.packed_form(tiny.source_ids([5, 7, 3]))).logits
    ids = torch.stack(tiny.source_ids([7, 7]))
    more = {} if name == "gpt" else {"decoder_input_ids": ids[:, :4]}
    return model(input_ids=ids, attention_mask=torch.ones_like(ids), **more).logits


def with_random_adapters(model: nn.Module, **lora) -> ParametersSection:
    chosen = ParametersSection.model_validate({"lora": {"rank": 5, "alpha": 7, **lora}})
    choose(model, chosen)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3)
    return chosen


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_merged_it_computes_the_same(name):
    torch.manual_seed(0)
    model = MODELS[name]().double().eval()
    targets = ["query-key-value", "dense"] if name == "gpt" else EVERYTHING
    before, names = logits_of(name, model), set(model.state_dict())
    trained = choose(MODELS[name](), ParametersSection.model_validate({"lora": {"rank": 5, "targets": targets}}))
    assert trained.adapted == ADAPTED[name]
    chosen = with_random_adapters(model, targets=targets)
    model.double().eval()
    plain = MODELS[name]().double().eval()
    weights = merged(model.state_dict(), chosen.lora.scale)
    assert set(weights) == names
    plain.load_state_dict(weights)
    got = logits_of(name, model)
    assert (got - before).abs().max() > 0.1
    torch.testing.assert_close(logits_of(name, plain), got, atol=1e-6, rtol=0)
    # Shared weights have one sum.
    for shared in names_of(MODELS[name]()).values():
        assert all(torch.equal(weights[shared[0]], weights[other]) for other in shared)


def test_a_new_adapter_changes_nothing_and_only_it_and_heads_learn():
    model = tiny.bnb_model()
    inputs = tiny.packed_form(sources := tiny.source_ids([5, 7, 3]), [source[:2] for source in sources])
    before = model(**inputs).loss_sum
    choose(model, ParametersSection.model_validate({"lora": {"rank": 5}}))
    after = model.double()(**inputs).loss_sum
    assert torch.equal(before, after)
    after.backward()
    for name, parameter in model.named_parameters():
        is_head = ".layer." not in name and ("embed" not in name or "latent_projection" in name)
        assert (parameter.grad is not None) == ("lora_" in name or is_head), name


def test_heads_do_not_take_an_embedding_along():
    """The output matrix of BART is its embedding, and BART has no other head."""
    model = bart()
    trained = choose(model, ParametersSection.model_validate({"lora": {"rank": 5}}))
    assert trained.heights == (1, 2)
    assert all("lora_" in name for name, parameter in model.named_parameters() if parameter.requires_grad)
    with pytest.raises(ConfigError, match=r"^lora\.also head: the model has no such part; remove it$"):
        choose(bart(), ParametersSection.model_validate({"lora": {"also": ["head"]}}))


def test_counts_are_those_of_the_meta_device():
    chosen = ParametersSection.model_validate({"lora": {"rank": 5}, "freeze": ["encoder"]})
    with torch.device("meta"):
        planned = choose(tiny.bnb_model(dtype=torch.float32), chosen)
    model = tiny.bnb_model()
    assert choose(model, chosen) == planned
    numbers = [parameter.numel() for parameter in model.parameters() if parameter.requires_grad]
    assert planned.trained == sum(numbers)
    assert planned.total == sum(parameter.numel() for parameter in model.parameters())


def test_without_peft_it_says_what_to_install(monkeypatch):
    def absent(name):
        raise ImportError(name=name)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(ConfigError, match=r"^lora needs the package peft: pip install"):
        choose(tiny.bnb_model(), ParametersSection.model_validate({"lora": {}}))


def test_adapters_without_a_recipe_that_knows_them(tmp_path, monkeypatch):
    run = tmp_path / "run"
    found = run / "checkpoints" / "step_00000004"
    found.mkdir(parents=True)
    (found / "checkpoint.json").write_text(json.dumps({}))
    model = tiny.bnb_model()
    chosen = with_random_adapters(model)
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    monkeypatch.setattr("bnb_ds.checkpoint.merging.read_weights", lambda path: weights)
    (run / "config.resolved.yaml").write_text(yaml.safe_dump({"task": "sst2", "lora": None}))
    with pytest.raises(CheckpointError, match=r"config\.resolved\.yaml: has no lora, but step_00000004 has adapters"):
        plain_weights(found)
    for lora in (chosen.lora.model_dump(), {"rank": 5, "alpha": 7.0}):
        (run / "config.resolved.yaml").write_text(yaml.safe_dump({"lora": lora}))
        for name, weight in plain_weights(found).items():
            assert torch.equal(weight, merged(weights, 7 / 5)[name])
