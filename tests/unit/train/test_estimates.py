"""The dry run computes all numbers, writes nothing and refuses settings that do not fit."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from bnb_ds.bench.measure import peak_bytes
from bnb_ds.common.packing import PackedLayout
from bnb_ds.config.deepspeed import load_ds_config
from bnb_ds.config.loading import load_recipe
from bnb_ds.ctc.alignment import nll_and_occupancy
from bnb_ds.ctc.inputs import align
from bnb_ds.dag.links import LinkNetwork
from bnb_ds.dag.loss import linear_dag_loss
from bnb_ds.errors import ConfigError, DataError
from bnb_ds.model_factory import build_model, model_config
from bnb_ds.modeling import BnbForConditionalGeneration
from bnb_ds.pretrain.plan import describe_dry_run, make_plan
from bnb_ds.shards.reader import TokenShards
from bnb_ds.train import estimates
from tests.tiny import bnb_config

CPU = torch.device("cpu")
DS = {
    "train_batch_size": 64,
    "train_micro_batch_size_per_gpu": 4,
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-4}},
}
SIZE = (
    "{hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 64,"
    " max_position_embeddings: 64}"
)


@pytest.fixture
def settings(tmp_path, small_shards):
    """Write both files and return their paths."""

    def write(recipe_extra="", **ds_changes):
        recipe, ds_config = tmp_path / "recipe.yaml", tmp_path / "ds.json"
        recipe.write_text(
            f"output_dir: {tmp_path / 'out'}\nepochs: 2\nmodel: {{size: {SIZE}{recipe_extra}}}\n"
            f"data: {{shards: {small_shards}, max_length: 32}}\n"
        )
        ds_config.write_text(json.dumps({**DS, **ds_changes}))
        return str(recipe), str(ds_config)

    return write


def test_dry_run_derives_steps_and_writes_nothing(settings, tmp_path, small_shards):
    recipe, ds_config = settings()
    lines = "\n".join(describe_dry_run(make_plan(recipe, [], ds_config, 8)))
    num_samples = len(TokenShards(small_shards, "train"))
    steps = -(-2 * num_samples // 64)
    assert f"{num_samples} samples per epoch" in lines
    assert "64 samples = 4 x 2 micro steps x 8 ranks" in lines
    assert f"steps        {steps} = " in lines
    assert "memory/GPU   about" in lines
    assert not (tmp_path / "out").exists()


def test_parameters_of_the_meta_model_are_those_of_the_real_one(settings, small_shards):
    recipe = load_recipe(settings()[0])
    shards = TokenShards(small_shards, "train")
    with torch.device("meta"):
        planned = BnbForConditionalGeneration(model_config(recipe.model, shards, 32))
    assert next(planned.parameters()).device.type == "meta"
    real = build_model(recipe.model, shards, 32)
    assert estimates.count_parameters(planned) == estimates.count_parameters(real) > 0


@pytest.mark.parametrize(
    ("changes", "world_size", "bytes_per_parameter"),
    [
        ({}, 1, 16),
        ({"zero_optimization": {"stage": 1}}, 4, 8 + 8 / 4),
        ({"zero_optimization": {"stage": 1}, "bf16": {"enabled": True}}, 4, 4 + 12 / 4),
        ({"zero_optimization": {"stage": 2}, "fp16": {"enabled": True}}, 4, 2 + (2 + 12) / 4),
        ({"zero_optimization": {"stage": 3}, "fp16": {"enabled": True}}, 8, 16 / 8),
        (
            {
                "zero_optimization": {"stage": 2},
                "bf16": {"enabled": True},
                "data_types": {"grad_accum_dtype": "fp32"},
            },
            2,
            2 + (4 + 12) / 2,
        ),
        ({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}, "fp16": {"enabled": True}}, 2, 3),
    ],
)
def test_state_bytes_follow_the_zero_paper(settings, changes, world_size, bytes_per_parameter):
    ds_config = load_ds_config(settings(**changes)[1], world_size)
    assert estimates.state_bytes(1000, ds_config) == pytest.approx(1000 * bytes_per_parameter)


@pytest.mark.parametrize(
    ("zero", "gib"),
    [
        ({"stage": 0}, 0),
        ({"stage": 1}, 4 * 5e8 / 2**30),
        ({"stage": 1, "reduce_bucket_size": 1000}, 4000 / 2**30),
        ({"stage": 2, "overlap_comm": True, "reduce_bucket_size": 1000}, 8000 / 2**30),
        ({"stage": 2, "contiguous_gradients": False}, 0),
        ({"stage": 3, "reduce_bucket_size": 1000}, 4000 / 2**30),
    ],
)
def test_buffers_of_zero(settings, zero, gib):
    ds_config = load_ds_config(settings(zero_optimization=zero)[1], 2)
    assert estimates.buffer_bytes(ds_config) / 2**30 == pytest.approx(gib)


@pytest.mark.parametrize(("bucket", "told"), [(2_000_000, True), (100, False)])
def test_a_bucket_that_holds_all_gradients_is_told(settings, bucket, told):
    zero = {"stage": 2, "overlap_comm": True, "reduce_bucket_size": bucket}
    plan = make_plan(*(settings(zero_optimization=zero)[0], [], settings(zero_optimization=zero)[1]), 2)
    config = model_config(plan.recipe.model, plan.train_shards, 32)
    lines = "\n".join(estimates.memory(config, 1_000_000, plan.ds_config, 32))
    assert ("reduce_bucket_size 2,000,000 holds all 1,000,000 gradients; set a fifth of them" in lines) == told


def test_activation_checkpointing_lowers_the_estimate(settings):
    recipe, ds_config = settings()
    plan = make_plan(recipe, [], ds_config, 1)
    config = model_config(plan.recipe.model, plan.train_shards, 32)
    plain = estimates.activation_bytes(config, plan.ds_config, 32, 4)
    recomputed = load_ds_config(settings(activation_checkpointing={})[1], 1)
    assert estimates.activation_bytes(config, recomputed, 32, 4) < plain


def test_a_head_behind_every_layer_adds_to_the_estimate(settings):
    recipe, ds_config = settings(", deep_supervision: true")
    plan = make_plan(recipe, ["model.size.num_hidden_layers=3"], ds_config, 1)
    config = model_config(plan.recipe.model, plan.train_shards, 32)
    assert config.deep_supervision
    deep = estimates.activation_bytes(config, plan.ds_config, 32, 4)
    config.deep_supervision = False
    slots, numbers = 4 * 64, 8 * 2 * 32 + 2 * 9 * 33  # two layers of 32 units, and two alignments of 32 tokens
    assert deep - estimates.activation_bytes(config, plan.ds_config, 32, 4) == slots * numbers * 4


ALONE = (
    ", has_decoder: false, decoder_positions: absolute, decoder_tokens: true, slot_tokens: inserted,"
    " decoder_latent: false"
)


def test_a_model_without_a_decoder_keeps_one_half_over_the_slots(settings):
    recipe, ds_config = settings(ALONE)
    plan = make_plan(recipe, ["objective.encoder_mlm_weight=0"], ds_config, 1)
    config = model_config(plan.recipe.model, plan.train_shards, 32)
    lines = describe_dry_run(plan)
    assert any(line.startswith("memory") for line in lines)
    alone = estimates.activation_bytes(config, plan.ds_config, 32, 4)
    config.has_decoder = True
    layer = 17 * 4 * 32  # one layer, of 32 units
    both = estimates.activation_bytes(config, plan.ds_config, 32, 4)
    assert both - alone == 4 * (32 * layer + 64 * layer * 1.5 - 64 * layer)
    wrong = make_plan(recipe, ["objective.encoder_mlm_weight=1"], ds_config, 1)
    with pytest.raises(
        ConfigError, match=r"encoder_mlm_weight 1.0: without a decoder, the encoder predicts the target its"
    ):
        describe_dry_run(wrong)


def test_halves_of_other_depths_are_told_and_counted(settings):
    recipe, ds_config = settings(", decoder_layers: 3")
    lines = describe_dry_run(make_plan(recipe, [], ds_config, 1))
    assert "layers       encoder 1, decoder 3" in lines


@pytest.mark.parametrize(("slots", "tokens"), [(200, 100), (400, 380), (300, 40)])
def test_the_alignment_of_ctc_takes_what_is_estimated(slots, tokens):
    layout = PackedLayout.from_host(np.full(2, slots), CPU)
    lengths = torch.full((2,), tokens)
    options = {"blank": 0, "vocab_size": 60, "max_target_length": tokens}
    alignment = align(layout, torch.randint(1, 50, (2, tokens)), lengths, **options)

    def run():
        nll_and_occupancy(torch.empty(2 * slots, tokens + 1).fill_(-4.0), alignment)

    estimate = 2 * estimates.alignment_bytes(bnb_config(), slots, tokens)
    assert 0.85 < peak_bytes(run, CPU) / estimate < 1.05


@pytest.mark.parametrize(("slots", "tokens", "heads"), [(160, 80, 1), (160, 150, 2), (100, 50, 8)])
def test_the_alignment_of_a_graph_takes_what_is_estimated(slots, tokens, heads):
    layout = PackedLayout.from_host(np.full(2, slots), CPU)
    leaves = [torch.randn(shape, requires_grad=True) for shape in ((2 * slots, 16), (60, 16), (60,))]
    network = LinkNetwork(16, heads, 256, 0.02)
    options = {"cu_seqlens": layout.cu_seqlens, "max_input_length": slots, "max_target_length": tokens}

    def run():
        targets = torch.randint(0, 60, (2 * tokens,)), None, torch.full((2,), tokens)
        linear_dag_loss(*leaves, network(leaves[0], layout), *targets, **options).loss.backward()

    config = bnb_config(target="dag", decoder_length_ratio=2.0, link_heads=heads, decoder={"hidden_size": 24})
    estimate = 2 * estimates.alignment_bytes(config, slots, tokens)
    assert 0.85 < peak_bytes(run, CPU) / estimate < 1.1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.max_length=65", "data.max_length 65: the encoder has 64 positions; set it to 64"),
        (
            "model.decoder_positions=absolute",
            "model.decoder_positions absolute: 33 source tokens need 66 decoder positions, but the decoder has 64",
        ),
    ],
)
def test_positions_that_do_not_suffice(settings, override, message):
    recipe, ds_config = settings()
    plan = make_plan(recipe, ["data.max_length=33", override], ds_config, 1)
    with pytest.raises(ConfigError, match=message):
        describe_dry_run(plan)


def test_missing_shards_name_the_way_out(settings, tmp_path):
    recipe, ds_config = settings()
    with pytest.raises(DataError, match="nowhere"):
        make_plan(recipe, [f"data.shards={tmp_path / 'nowhere'}"], ds_config, 1)


def test_shards_without_held_out_documents(settings, tmp_path, small_texts, small_tokenizer):
    from data_prep.sources.documents import Document
    from tests.shard_building import build_shards

    documents = (Document(str(i), text, "x") for i, text in enumerate(small_texts[:5]))
    build_shards(documents, tmp_path / "shards", small_tokenizer, sources=[], holdout=0.0)
    recipe, ds_config = settings()
    with pytest.raises(DataError, match="holds no held-out documents; prepare it with another --holdout"):
        make_plan(recipe, [f"data.shards={tmp_path / 'shards'}"], ds_config, 1)


def test_shards_whose_tokenizer_was_changed(settings, tmp_path, small_shards, small_texts):
    from data_prep.sources.documents import Document
    from data_prep.tokenise.vocab import train_vocabulary

    changed = shutil.copytree(small_shards, tmp_path / "shards")
    shutil.rmtree(changed / "tokenizer")
    documents = (Document(str(i), text, "") for i, text in enumerate(small_texts))
    train_vocabulary(documents, changed / "tokenizer", vocab_size=500)
    recipe, ds_config = settings()
    with pytest.raises(DataError, match="this is not the tokenizer that the shards were made with; restore it, or"):
        make_plan(recipe, [f"data.shards={changed}"], ds_config, 1)


def test_a_hub_checkpoint_with_another_tokenizer_is_refused(settings, tmp_path, small_texts, small_shards, monkeypatch):
    """A hub name is resolved through the hub's cache. The test writes this cache like a download does."""
    from transformers import BertConfig, BertModel

    from data_prep.sources.documents import Document
    from data_prep.tokenise.vocab import train_vocabulary

    repository = tmp_path / "models--lab--bert"
    snapshot = repository / "snapshots" / ("0" * 40)
    documents = (Document(str(i), t, "") for i, t in enumerate(small_texts))
    train_vocabulary(documents, snapshot, vocab_size=500)
    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=600, **size)).save_pretrained(snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path))
    recipe = load_recipe(settings()[0], ["model.size=null", "model.encoder=lab/bert"])
    with pytest.raises(DataError, match="lab/bert: its tokenizer is not the one that"):
        build_model(recipe.model, TokenShards(small_shards, "train"), 32)


def test_a_checkpoint_with_another_tokenizer_is_refused(settings, tmp_path, small_texts, small_shards):
    from transformers import BertConfig, BertModel

    from data_prep.sources.documents import Document
    from data_prep.tokenise.vocab import train_vocabulary

    bert = tmp_path / "bert"
    train_vocabulary((Document(str(i), t, "") for i, t in enumerate(small_texts)), bert, vocab_size=500)
    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=600, **size)).save_pretrained(bert)
    recipe = load_recipe(settings()[0], ["model.size=null", f"model.encoder={bert}"])
    with pytest.raises(DataError, match=r"its tokenizer is not the one that data\.shards was made with"):
        build_model(recipe.model, TokenShards(small_shards, "train"), 32)


def test_a_checkpoint_with_a_smaller_vocabulary_is_refused(settings, tmp_path, small_shards):
    from transformers import BertConfig, BertModel

    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=50, **size)).save_pretrained(tmp_path / "bert")
    recipe = load_recipe(settings()[0], ["model.size=null", f"model.encoder={tmp_path / 'bert'}"])
    with pytest.raises(DataError, match=r"model\.encoder: its vocabulary has 50 tokens, the shards"):
        build_model(recipe.model, TokenShards(small_shards, "train"), 32)


def test_a_bert_checkpoint_gives_its_weights(settings, tmp_path, small_shards, small_tokenizer):
    from transformers import BertConfig, BertModel

    shards = TokenShards(small_shards, "train")
    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    bert = BertModel(BertConfig(vocab_size=shards.vocab_size, **size))
    bert.save_pretrained(tmp_path / "bert")
    small_tokenizer.save_pretrained(tmp_path / "bert")
    overrides = ["model.size=null", f"model.encoder={tmp_path / 'bert'}", "model.hidden_dropout=0.25"]
    recipe = load_recipe(settings()[0], overrides)
    model = build_model(recipe.model, shards, 32)
    ours = model.model.encoder.embeddings.word_embeddings.weight
    assert torch.equal(ours, bert.embeddings.word_embeddings.weight)
    assert model.config.encoder.hidden_dropout_prob == model.config.decoder.hidden_dropout_prob == 0.25
    plan = make_plan(settings()[0], overrides, settings()[1], 1)
    assert any("memory/GPU" in line for line in describe_dry_run(plan))
