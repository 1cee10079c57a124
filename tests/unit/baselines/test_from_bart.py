"""The non-autoregressive baselines start from a BART, and compute what its layers compute."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import nn
from transformers import BartConfig, BartForConditionalGeneration, PreTrainedTokenizerFast

from bnb_ds.errors import CheckpointError, ConfigError
from bnb_ds.finetune.plan import describe_dry_run, make_plan
from bnb_ds.finetune.recipe import FinetuneRecipe
from bnb_ds.generate.pipeline import BnbPipeline
from bnb_ds.systems.kinds import system_class
from bnb_ds.tasks.data_section import TaskDataSection
from bnb_ds.tasks.registry import get_task
from bnb_ds.tasks.text_lengths import Lengths
from tests.launching import REPOSITORY

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def bpe_tokenizer():
    """Bytes as BART has them, without merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), trim_offsets=False)
    names = dict(zip(("bos_token", "pad_token", "eos_token", "unk_token", "mask_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=backend, cls_token="<s>", sep_token="</s>", **names)


def save_bart(folder, *, with_concat=False, **fields):
    torch.manual_seed(0)
    config = {
        "vocab_size": 261,
        "d_model": 12,
        "encoder_layers": 2,
        "decoder_layers": 3,
        "encoder_attention_heads": 3,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 20,
        "decoder_ffn_dim": 18,
        "max_position_embeddings": 24,
        "init_std": 0.3,
        "decoder_start_token_id": 2,
        **fields,
    }
    model = BartForConditionalGeneration(BartConfig(**config))
    if with_concat:
        model.concat_head = nn.Linear(24, 12, bias=False)
        nn.init.normal_(model.concat_head.weight, std=0.3)
    nn.init.normal_(model.final_logits_bias)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            nn.init.normal_(module.bias, std=0.1)
    model.save_pretrained(folder)
    bpe_tokenizer().save_pretrained(folder)
    return model.eval()


def system_of(kind, checkpoint, **fields):
    values = {"model": {"kind": kind, "encoder": str(checkpoint), **fields}, "task": "translation", "steps": 1}
    section, task = FinetuneRecipe.model_validate({"output_dir": "run", **values}).model, get_task("translation")
    chosen = system_class(kind, task)
    return chosen(task, Lengths(20, 12), chosen.make_codec(task, section, TaskDataSection()), section)


@pytest.mark.parametrize("with_concat", [False, True])
@torch.no_grad()
def test_the_layers_are_those_of_bart(with_concat, tmp_path):
    bart = save_bart(tmp_path / "bart", with_concat=with_concat)
    model = system_of("elmer", tmp_path / "bart").build().eval()
    source, length = torch.tensor([[0, 9, 200, 34, 2]]), 7
    memory = bart.model.encoder(source).last_hidden_state
    words, positions = bart.model.shared, bart.model.decoder.embed_positions.weight[2 : 2 + length]
    hidden = bart.model.decoder.layernorm_embedding(words(torch.full((1, length), 4)) + positions)
    for number, layer in enumerate(bart.model.decoder.layers):
        everything = torch.zeros(1, 1, length, length)  # positions see all others, as in ELMER
        hidden = layer(hidden, everything, memory)
        logits = bart.lm_head(hidden) + bart.final_logits_bias
        if with_concat and number + 1 < 3:
            hidden = bart.concat_head(torch.cat((hidden, words(logits.argmax(-1))), -1))
    encoded = model.model.encode(model.model.pack(source))
    torch.testing.assert_close(encoded.hidden, memory[0], rtol=1e-4, atol=1e-5)
    states = model.states(encoded, model.model.open(encoded, torch.tensor([length])))
    ours = states.hidden @ states.weight.T + states.bias
    torch.testing.assert_close(ours, logits[0], rtol=1e-4, atol=1e-4)


def test_a_model_is_saved_loaded_and_generates(tmp_path):
    save_bart(tmp_path / "bart")
    system = system_of("nat", tmp_path / "bart", max_position_embeddings=20)
    model = system.build()
    assert model.config.encoder.max_position_embeddings == 20
    model.save_pretrained(tmp_path / "model")
    system.save_files(model.config, tmp_path / "model")
    again = system_class("nat", system.task).load_codec(tmp_path / "model")
    assert again.source("ab").input_ids == system.codec.source("ab").input_ids == [0, 5 + 64, 5 + 65, 2]
    text = BnbPipeline.from_pretrained(tmp_path / "model", device="cpu")("ab c")
    assert isinstance(text, str)


def test_a_run_is_planned_with_the_tokenizer_of_bart(tmp_path):
    save_bart(tmp_path / "bart")
    rows = "".join(json.dumps({"source": f"text {i}", "target": f"of {i}"}) + "\n" for i in range(20))
    (tmp_path / "rows.jsonl").write_text(rows)
    overrides = [f"data.{split}={tmp_path / 'rows.jsonl'}" for split in ("train", "validation")]
    overrides += ["data.test=null", "data.tokenizer=null", "data.max_source_length=20", "data.max_target_length=20"]
    overrides += [f"data.cache_dir={tmp_path / 'cache'}", f"output_dir={tmp_path / 'out'}"]
    overrides += ["model.size=null", f"model.encoder={tmp_path / 'bart'}"]
    recipe = REPOSITORY / "runs" / "recipes" / "finetune" / "multi30k_elmer.yaml"
    plan = make_plan(str(recipe), overrides, str(REPOSITORY / "ds_configs" / "finetune_glue.json"), 8)
    lines = "\n".join(describe_dry_run(plan))
    assert "model kind elmer" in lines
    assert "targets that do not fit: train 0 of 20" in lines


def test_refused(tmp_path):
    save_bart(tmp_path / "bart")
    with pytest.raises(ConfigError, match=r"model.decoder: model.encoder is a BART, which has a decoder of its own"):
        system_of("nat", tmp_path / "bart", decoder=str(tmp_path / "bart"))
    with pytest.raises(ConfigError, match=r"model.max_position_embeddings 30: .*bart has 24 positions; give fewer"):
        system_of("nat", tmp_path / "bart", max_position_embeddings=30).config()
    save_bart(tmp_path / "scaled", scale_embedding=True)
    with pytest.raises(ConfigError, match=r"scaled: multiplies its embeddings \(scale_embedding true\); give a BART"):
        system_of("nat", tmp_path / "scaled").config()
    config = json.loads((tmp_path / "bart" / "config.json").read_text())
    (tmp_path / "bart" / "config.json").write_text(json.dumps({**config, "encoder_layers": 4}))
    with pytest.raises(CheckpointError, match=r"bart: lacks weights such as model.encoder.layers.2.*; name a whole"):
        system_of("elmer", tmp_path / "bart").build()
    with pytest.raises(CheckpointError, match="absent: cannot be read as a model"):
        system_of("elmer", tmp_path / "absent")


def test_weights_under_unknown_names_are_refused(tmp_path):
    """The feedback of layers would begin anew, and nobody would know."""
    bart = save_bart(tmp_path / "bart", with_concat=True)
    path = tmp_path / "bart" / "model.safetensors"
    weights = load_file(path)
    weights["concat_layer.weight"] = weights.pop("concat_head.weight")
    save_file(weights, path, metadata={"format": "pt"})
    message = "bart: has weights that no BART or ELMER has: concat_layer.weight; name ELMER's layer concat_head"
    with pytest.raises(CheckpointError, match=message):
        system_of("elmer", tmp_path / "bart").build()
    weights |= {f"extra.{number}": torch.zeros(1) for number in range(4)}
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"concat_layer.weight, extra.0, extra.1 and 2 more; name ELMER"):
        system_of("nat", tmp_path / "bart").build()
    # What every BART may hold is no fault: other heads, and a binary file names tied weights several times.
    path.unlink()
    heads = {"classification_head.dense.bias": torch.zeros(12), "qa_outputs.bias": torch.zeros(2)}
    torch.save({**bart.state_dict(), **heads}, tmp_path / "bart" / "pytorch_model.bin")
    system_of("elmer", tmp_path / "bart").build()
