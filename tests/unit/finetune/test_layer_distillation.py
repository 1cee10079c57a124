"""Teachers and students that a recipe may not join, and kinds of model without layers to learn from."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from bnb_ds.errors import ConfigError
from bnb_ds.finetune.layer_distillation import LayerDistillationSection, match_teacher
from bnb_ds.finetune.recipe import FinetuneRecipe
from bnb_ds.systems.encoder_ctc import EncoderCtcSection
from bnb_ds.systems.kinds import system_class
from bnb_ds.tasks.codec import Codec
from bnb_ds.tasks.registry import get_task
from bnb_ds.tasks.text_lengths import Lengths

SIZE = {
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 80,
}


def system_of(kind, tokenizer, target=None, task="translation", **fields):
    values = {"output_dir": "run", "steps": 1, "task": task, "model": {"kind": kind, **fields}}
    section = FinetuneRecipe.model_validate(values).model
    found = get_task(task)
    return system_class(kind, found)(found, Lengths(20, 20), Codec(tokenizer, target or tokenizer), section)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, small_tokenizer):
    directory = tmp_path_factory.mktemp("teacher")
    system = system_of("bnb", small_tokenizer, size={**SIZE, "num_hidden_layers": 4})
    system.save_files(system.config(), directory)
    return directory


def matched(teacher, student, **fields):
    return match_teacher(LayerDistillationSection(teacher=str(teacher), **fields), student).layers


def test_layers_are_matched_without_weights(teacher, small_tokenizer):
    student = system_of("bnb", small_tokenizer, size=SIZE, decoder_layers=1)
    assert matched(teacher, student) == {"encoder": [1, 3], "decoder": [3]}
    assert matched(teacher, student, layers={"decoder": [0]}) == {"encoder": [1, 3], "decoder": [0]}
    assert matched(teacher, student, hidden=0.0) == {}


def test_models_that_do_not_fit_together(teacher, small_tokenizer, other_tokenizer):
    other = system_of("bnb", small_tokenizer, size=SIZE, decoder_length_ratio=1.5)
    with pytest.raises(
        ConfigError, match=r"layer_distillation: decoder_length_ratio is 1.5, and 2.0 in the teacher: both"
    ):
        matched(teacher, other)
    other = system_of("bnb", small_tokenizer, other_tokenizer, size=SIZE)
    with pytest.raises(
        ConfigError, match="has another tokenizer of the targets; give the teacher's to the student, with"
    ):
        matched(teacher, other)
    other = system_of("bnb", small_tokenizer, size=SIZE, task="summarization")
    with pytest.raises(ConfigError, match="was trained for task translation; name one of the same task"):
        matched(teacher, other)


@pytest.mark.parametrize("kind", ["inat", "cmlm", "transformer"])
def test_kinds_that_cannot_learn_so(kind, teacher, small_tokenizer):
    layers = {"encoder_layers": 1, "decoder_layers": 1} if kind == "transformer" else {"num_hidden_layers": 2}
    size = {**{name: value for name, value in SIZE.items() if name != "num_hidden_layers"}, **layers}
    message = (
        f"layer_distillation: model.kind {kind} for task translation has no positions that a teacher sees too; rem"
    )
    with pytest.raises(ConfigError, match=message):
        matched(teacher, system_of(kind, small_tokenizer, size=size))


def test_a_teacher_that_writes_one_token_after_the_other(tmp_path, small_tokenizer):
    size = {"encoder_layers": 1, "decoder_layers": 1, **{k: v for k, v in SIZE.items() if k != "num_hidden_layers"}}
    system = system_of("transformer", small_tokenizer, size=size)
    system.save_files(system.config(), tmp_path)
    with pytest.raises(
        ConfigError, match="is of kind transformer, which writes one token after the other; use `bnb-ds di"
    ):
        matched(tmp_path, system_of("bnb", small_tokenizer, size=SIZE))


def test_nothing_to_learn():
    with pytest.raises(
        ValidationError, match="hidden 0 and logits 0: nothing would be learnt from the teacher; raise one"
    ):
        LayerDistillationSection(teacher="run", hidden=0, logits=0)


def test_settings_of_an_encoder_with_ctc(small_tokenizer, other_tokenizer):
    system = system_of("encoder_ctc", small_tokenizer, size=SIZE, masks=3)
    config = system.config()
    assert (config.has_decoder, config.decoder_length_ratio, config.target_kind) == (False, 4, "ctc")
    assert system.terms(None) == []
    with pytest.raises(
        ConfigError, match=r"data.target_tokenizer: kind encoder_ctc reads and writes with one vocabulary"
    ):
        system_of("encoder_ctc", small_tokenizer, other_tokenizer, size=SIZE).config()
    with pytest.raises(
        ConfigError, match=r"data.max_source_length 20: with the inserted mask tokens it takes 100 positio"
    ):
        system_of("encoder_ctc", small_tokenizer, size=SIZE, masks=4).config()
    with pytest.raises(
        ValidationError, match=r"embedding_anchor 0.5 keeps the embeddings of a checkpoint, but size draws"
    ):
        EncoderCtcSection(kind="encoder_ctc", size=SIZE, embedding_anchor=0.5)


def test_the_anchor_is_the_embedding_that_the_run_began_with(tmp_path, small_tokenizer):
    first = system_of("encoder_ctc", small_tokenizer, size=SIZE)
    model = first.build()
    model.save_pretrained(tmp_path)
    small_tokenizer.save_pretrained(tmp_path)
    system = system_of("encoder_ctc", small_tokenizer, checkpoint=str(tmp_path), embedding_anchor=0.5)
    built = system.build()
    (term,) = system.terms(built)
    assert json.loads((tmp_path / "config.json").read_text())["has_decoder"] is False
    assert (term.originals == built.get_output_embeddings().weight).all()
    assert term.originals.data_ptr() != built.get_output_embeddings().weight.data_ptr()
