"""What every backbone promises: one suite for all of them, on checkpoints made by transformers' own classes."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModel, AutoModelForSeq2SeqLM, PreTrainedModel

from bnb_ds.decoding.options import DecodeOptions
from bnb_ds.errors import ConfigError
from bnb_ds.export.onnx import write_graph
from bnb_ds.generate.engines import CompiledEngine, OnnxEngine, TorchEngine
from bnb_ds.model.backbones.entries import BACKBONES, positions_of
from bnb_ds.model.classification import BnbForSequenceClassification, encoder_of
from bnb_ds.model.fixed_shape import RectangularBnb
from bnb_ds.model.layers import BnbLMHead
from bnb_ds.modeling import BnbForConditionalGeneration, BnbForPretraining
from tests.backbones import CASES, FAMILIES, POSITIONS, VOCAB, Halves, padded, save_checkpoint
from tests.tiny import packed_form, source_ids

LENGTHS = [7, 1, 10, POSITIONS]
#: ids from which `source_ids` draws are not those of special tokens
MASK = 4


@dataclass
class Made:
    """The checkpoints of a case, and the model that begins with them."""

    halves: Halves
    encoder: Path
    decoder: Path | None
    model: Any = None

    def start(self, model_class: Any = BnbForConditionalGeneration, **overrides: Any) -> Any:
        torch.manual_seed(1)
        fields = {"latent_size": 5, "decoder_positions": "shared", "decoder_length_ratio": 1.5, **overrides}
        return model_class.from_bert(self.encoder, self.decoder, **fields)

    @property
    def padding(self) -> int:
        return self.model.config.source_pad_token_id


#: the one that differs most from two BERTs; the others run with the slow tests
QUICK = ("xlm-roberta and bert",)


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in CASES],
)
def made(request, tmp_path_factory) -> Made:
    halves, folder = CASES[request.param], tmp_path_factory.mktemp("checkpoints")
    encoder = save_checkpoint(folder / "encoder", halves.encoder)
    decoder = None if halves.decoder is None else save_checkpoint(folder / "decoder", halves.decoder, seed=2)
    made = Made(halves, encoder, decoder)
    made.model = made.start()
    return made


@cache
def theirs(path: Path, family: str) -> PreTrainedModel:
    return FAMILIES[family][0].from_pretrained(path).eval()


def test_every_entry_is_in_the_suite():
    made_of = {FAMILIES[name][1].model_type for halves in CASES.values() for name in (halves.encoder, halves.target)}
    assert made_of == set(BACKBONES)


@torch.no_grad()
def test_the_encoder_is_transformers_own(made):
    ids, mask = padded(source_ids(LENGTHS), made.padding)
    expected = theirs(made.encoder, made.halves.encoder).base_model(ids, attention_mask=mask).last_hidden_state
    hidden = made.model(ids, mask).encoder_last_hidden_state
    assert (hidden - expected * mask[..., None]).abs().max() < 1e-5


@torch.no_grad()
def test_the_heads_are_transformers_own(made):
    """The decoder's LM head, and the encoder's in pre-training."""
    model = made.start(BnbForPretraining)
    heads: list[tuple[BnbLMHead, Any, Path, str]] = [
        (model.encoder_mlm_head, model.get_input_embeddings(), made.encoder, made.halves.encoder),
        (model.lm_head, model.get_output_embeddings(), made.decoder or made.encoder, made.halves.target),
    ]
    ids, mask = padded(source_ids(LENGTHS), made.padding)
    for head, embeddings, path, family in heads:
        checkpoint = theirs(path, family)
        hidden = checkpoint.base_model(ids, attention_mask=mask).last_hidden_state
        logits = F.linear(head(hidden), embeddings.weight, head.bias)
        assert (logits - checkpoint(ids, attention_mask=mask).logits).abs().max() < 1e-5


@torch.no_grad()
def test_packed_and_padded_rows_and_single_sources_give_the_same(made):
    sources, model = source_ids(LENGTHS), copy.deepcopy(made.model).double()
    ids, mask = padded(sources, made.padding)
    together = model(ids, mask)
    packed = model(**packed_form(sources))
    rows = together.logits.split(1)
    flat = torch.cat([row[0, :length] for row, length in zip(rows, together.decoder_lengths.tolist(), strict=True)])
    assert torch.allclose(packed.logits, flat, rtol=0, atol=1e-12)
    for row, source, length in zip(rows, sources, together.decoder_lengths.tolist(), strict=True):
        alone = model(source[None]).logits
        assert torch.allclose(alone[0], row[0, :length], rtol=0, atol=1e-12)
    assert torch.equal(model.generate(ids), model.generate(ids, mask))


SETTINGS = {
    "plain": {},
    "absolute": {"decoder_positions": "absolute", "decoder_length_ratio": 1.0},
    "tied": {"tie_encoder_decoder": True},
    "tokens": {"decoder_tokens": True, "mask_token_id": MASK, "deep_supervision": True},
    "graph": {"target": "dag", "link_positions": 99},
    "predicted": {"decoder_length": "predicted", "decoder_tokens": True, "mask_token_id": MASK},
}


@pytest.mark.parametrize("settings", SETTINGS)
def test_gradients_reach_every_parameter(made, settings):
    if settings == "tied" and made.halves.decoder is not None:
        message = "tie_encoder_decoder needs two halves of the same size, but these differ: model_type"
        with pytest.raises(ConfigError, match=message):
            made.start(**SETTINGS[settings])
        return
    model = made.start(**SETTINGS[settings]).double().train()
    sources = source_ids(LENGTHS[:3])
    ids, mask = padded(sources, made.padding)
    labels = torch.nn.utils.rnn.pad_sequence(source_ids([4, 2, 6], seed=5), batch_first=True, padding_value=-100)
    types = (torch.arange(ids.shape[1]) > 4).long().expand_as(ids)  # families without types pass over them
    output = model(ids, mask, types, labels=labels)
    output.loss.backward()
    unreached = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # A key's bias adds the same to all scores of a query, so nothing depends on it.
    assert [name for name in unreached if not name.endswith("key.bias")] == []
    assert torch.isfinite(output.loss)


def test_a_saved_model_is_the_same_model(made, tmp_path):
    model = made.model
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    assert loaded.config == model.config
    assert type(loaded.config.encoder) is type(model.config.encoder)
    state = loaded.state_dict()
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(weight, state[name]) for name, weight in model.state_dict().items())
    ids, mask = padded(source_ids(LENGTHS), made.padding)
    assert torch.equal(loaded(ids, mask).logits, model(ids, mask).logits)


@torch.no_grad()
def test_the_encoder_is_exported_as_a_plain_model(made, tmp_path):
    encoder_of(made.model).to_bert().save_pretrained(tmp_path)
    ids, mask = padded(source_ids(LENGTHS), made.padding)
    plain, checkpoint = AutoModel.from_pretrained(tmp_path), theirs(made.encoder, made.halves.encoder).base_model
    got, expected = (model(ids, attention_mask=mask).last_hidden_state for model in (plain, checkpoint))
    assert ((got - expected) * mask[..., None]).abs().max() < 1e-5


def test_weights_of_either_format_begin_the_same_model(made, tmp_path):
    old = tmp_path / "bin"
    checkpoint = theirs(made.encoder, made.halves.encoder)
    checkpoint.config.save_pretrained(old)
    torch.save(checkpoint.state_dict(), old / "pytorch_model.bin")
    again = Made(made.halves, old, made.decoder).start()
    assert all(torch.equal(weight, again.state_dict()[name]) for name, weight in made.model.state_dict().items())


def test_positions_have_a_limit_and_can_be_cut_and_repeated(made):
    model = made.model
    assert positions_of(model.config.encoder) == positions_of(model.config.decoder) == POSITIONS
    with pytest.raises(ConfigError, match="a source has 25 tokens, but the encoder has 24 positions: cut the source"):
        model(source_ids([POSITIONS + 1])[0][None])
    short, source = made.start(max_position_embeddings=9), source_ids([9])[0][None]
    expected = model(source).encoder_last_hidden_state
    assert torch.equal(short(source).encoder_last_hidden_state, expected)
    with pytest.raises(ConfigError, match="a source has 10 tokens, but the encoder has 9 positions: cut the source"):
        short(source_ids([10])[0][None])
    with pytest.raises(ConfigError, match="the encoder's checkpoint has 24 position embeddings: give 1 to 24, or set"):
        made.start(max_position_embeddings=40)
    long = made.start(max_position_embeddings=40, extend_positions=True)
    assert torch.equal(long(source).encoder_last_hidden_state, expected)
    assert torch.isfinite(long(source_ids([40])[0][None]).logits).all()
    if made.halves.target == "modernbert":
        return  # it has no table
    tables = [each.model.decoder.embeddings.position_embeddings.weight for each in (short, model, long)]
    first = tables[1].shape[0] - POSITIONS
    assert torch.equal(tables[0], tables[1][: first + 9])
    assert torch.equal(tables[2], torch.cat((tables[1], tables[1][first:]))[: first + 40])


def test_labels_are_learnt_from_the_same_encoder(made, tmp_path):
    torch.manual_seed(3)
    model = BnbForSequenceClassification.from_bert(made.encoder, num_labels=3)
    ids, mask = padded(source_ids(LENGTHS), made.padding)
    types = (torch.arange(ids.shape[1]) > 4).long().expand_as(ids)
    logits = model(ids, mask, types).logits
    model.save_pretrained(tmp_path)
    assert torch.equal(BnbForSequenceClassification.from_pretrained(tmp_path)(ids, mask, types).logits, logits)
    # The first token's state of transformers' own encoder goes into the pooler; other families know no types.
    has_types = FAMILIES[made.halves.encoder][1].model_type in ("bert", "electra")
    inputs = {"token_type_ids": types} if has_types else {}
    first = theirs(made.encoder, made.halves.encoder).base_model(ids, attention_mask=mask, **inputs)
    expected = model.classifier(model.pooler(first.last_hidden_state))
    assert (logits - expected).abs().max() < 1e-5


#: every family in one of them at least
EXPORTED = ("bert", "roberta", "electra", "distilbert", "modernbert", "xlm-roberta and bert")


def graph_sources() -> list[torch.Tensor]:
    return source_ids([20, 17, POSITIONS, 1])


@pytest.mark.slow
def test_graphs_write_what_the_model_writes(made, tmp_path, request):
    if request.node.callspec.params["made"] not in EXPORTED:
        pytest.skip("other cases have the same halves")
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"the optional package {package} is not installed")
    rows = [source.tolist() for source in graph_sources()]
    options = DecodeOptions(token_budget=1000)
    expected = TorchEngine(made.model).decode(rows, options)
    write_graph(made.model, tmp_path)
    assert OnnxEngine(tmp_path, num_threads=1).decode(rows, options) == expected
    assert len({tuple(ids) for ids, _ in expected}) > 1
    assert max(max(ids) for ids, _ in expected if ids) < VOCAB


@pytest.mark.slow
def test_a_compiled_model_writes_the_same(made, request):
    """Traced as a whole; code of its own is compiled for the family that differs most."""
    model = made.model
    with torch.no_grad():
        graph = torch.compile(RectangularBnb(model), backend="aot_eager", fullgraph=True)
        inputs = padded(graph_sources(), made.padding)
        assert torch.equal(graph(*inputs), RectangularBnb(model)(*inputs))
    if request.node.callspec.params["made"] == "modernbert":
        rows, options = [graph_sources()[0].tolist()], DecodeOptions(token_budget=1000)
        assert CompiledEngine(model).decode(rows, options) == TorchEngine(model).decode(rows, options)
