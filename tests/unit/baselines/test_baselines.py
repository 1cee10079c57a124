"""Baselines from transformers: their settings, and equal losses and outputs packed, padded, alone and reloaded."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForSeq2SeqLM,
    BartConfig,
    BartForConditionalGeneration,
    BertForMaskedLM,
    OpenAIGPTConfig,
    OpenAIGPTModel,
    RobertaConfig,
    RobertaForMaskedLM,
)

from bnb_ds.baselines.build import read_classifier
from bnb_ds.baselines.cost import seq2seq_flops
from bnb_ds.baselines.seq2seq import BeamOptions
from bnb_ds.baselines.settings import Bert2bertSection, ClassifierSection, Seq2SeqSection, TransformerSection
from bnb_ds.common.files import new_directory
from bnb_ds.data.tokenization import tokenizer_from_vocabulary
from bnb_ds.errors import CheckpointError, ConfigError, DataError
from bnb_ds.systems.baselines import Bert2bert, CheckpointClassifier, Seq2SeqCheckpoint, Transformer
from bnb_ds.systems.model_dir import load_system
from bnb_ds.tasks.codec import Codec
from bnb_ds.tasks.data_section import TaskDataSection
from bnb_ds.tasks.registry import get_task
from bnb_ds.tasks.text_lengths import Lengths
from tests.tiny import VOCAB, bert_config, packed_form, pad_rows, source_ids

SIZE = {
    "hidden_size": 12,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 24,
}
NAMES = ("bert2bert", "tied", "random", "transformer", "bart", "roberta")
_ROBERTA = {
    "vocab_size": VOCAB,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "initializer_range": 0.2,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 25,
    "type_vocab_size": 1,
}
LENGTHS = Lengths(20, 8)


def tokenizer(size: int = VOCAB):
    words = [f"w{i}" for i in range(size - 5)]
    return tokenizer_from_vocabulary(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words], lowercase=False)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, str]:
    """Hugging Face directories of a BERT, a BART and an OpenAI GPT."""
    torch.manual_seed(0)
    bart = BartConfig(
        vocab_size=VOCAB,
        d_model=12,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=3,
        decoder_attention_heads=3,
        encoder_ffn_dim=20,
        decoder_ffn_dim=20,
        max_position_embeddings=24,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
        decoder_start_token_id=3,
        init_std=0.2,
    )
    gpt = OpenAIGPTConfig(vocab_size=VOCAB - 2, n_positions=24, n_embd=12, n_layer=2, n_head=3)
    models = {
        "bert": BertForMaskedLM(bert_config()),
        "bart": BartForConditionalGeneration(bart),
        # Its tokenizer here pads with token 0, so its positions begin with row 1.
        "roberta": RobertaForMaskedLM(RobertaConfig(**_ROBERTA)),
        "gpt": OpenAIGPTModel(gpt),
    }
    folder = tmp_path_factory.mktemp("checkpoints")
    for name, model in models.items():
        model.save_pretrained(folder / name)
    return {name: str(folder / name) for name in models}


def system(name: str, checkpoints: dict[str, str], source=None, target=None, lengths=LENGTHS, **fields):
    """A system that writes targets of at most 7 tokens; ``fields`` are fields of the transformer's section."""
    kinds = {
        "bert2bert": (Bert2bert, Bert2bertSection(kind="bert2bert", encoder=checkpoints["bert"])),
        "tied": (Bert2bert, Bert2bertSection(kind="bert2bert", encoder=checkpoints["bert"], tie_encoder_decoder=True)),
        "roberta": (
            Bert2bert,
            Bert2bertSection(kind="bert2bert", encoder=checkpoints["roberta"], tie_encoder_decoder=True),
        ),
        "random": (Bert2bert, Bert2bertSection(kind="bert2bert", size=SIZE)),
        "transformer": (Transformer, TransformerSection(kind="transformer", **{"size": SIZE, **fields})),
        "bart": (Seq2SeqCheckpoint, Seq2SeqSection(kind="seq2seq", checkpoint=checkpoints["bart"])),
    }
    source = source or tokenizer()
    chosen, section = kinds[name]
    return chosen(get_task("translation"), lengths, Codec(source, target or source), section)


def build(name: str, checkpoints: dict[str, str], **fields):
    torch.manual_seed(1)
    return system(name, checkpoints, **fields).build().eval()


def framed(targets: list[torch.Tensor]) -> list[torch.Tensor]:
    return [torch.cat((torch.tensor([2]), target, torch.tensor([3]))) for target in targets]


def classifier(checkpoint: str, task: str, lengths=LENGTHS):
    section, shared = ClassifierSection(kind="classifier", checkpoint=checkpoint), tokenizer()
    return CheckpointClassifier(get_task(task), lengths, Codec(shared, shared), section)


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_is_that_of_the_plain_padded_model(name, checkpoints):
    model = build(name, checkpoints)
    sources, targets = source_ids([5, 9, 3]), framed(source_ids([4, 2, 7], seed=2))
    inputs = packed_form(sources, targets)
    output = model(**inputs, return_logits=True)

    # BART puts its start token before the target's first token; for the others that first token is the start token.
    given = [torch.cat((torch.tensor([3]), t[:-1])) if name == "bart" else t[:-1] for t in targets]
    labels = [t if name == "bart" else t[1:] for t in targets]
    logits = model.model(
        input_ids=pad_rows(sources),
        attention_mask=pad_rows([torch.ones_like(source) for source in sources]),
        decoder_input_ids=pad_rows(given),
    ).logits
    expected = F.cross_entropy(logits.flatten(0, 1), pad_rows(labels, -100).flatten(), reduction="sum")
    torch.testing.assert_close(output.loss_sum, expected)
    assert int(output.loss_count) == sum(map(len, labels))
    made = system(name, checkpoints)
    assert made.target_rules.loss_count(sum(map(len, targets)), 3) == sum(map(len, labels))
    torch.testing.assert_close(output.loss, output.loss_sum / output.loss_count)
    alone = [model(**packed_form([s], [t])).loss_sum for s, t in zip(sources, targets, strict=True)]
    torch.testing.assert_close(output.loss_sum, sum(alone))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_beams", [1, 3])
def test_generation_is_the_same_alone_in_a_batch_and_reloaded(name, num_beams, checkpoints, tmp_path):
    made = system(name, checkpoints)
    torch.manual_seed(1)
    model = made.build().eval()
    rows = [source.tolist() for source in source_ids([5, 9, 3])]
    outputs = [output.tolist() for output in made.write(model, rows, num_beams)]
    assert all(len(output) <= 8 for output in outputs)
    assert outputs == [made.write(model, [row], num_beams)[0].tolist() for row in rows]
    with new_directory(tmp_path / "model") as directory:
        model.save_pretrained(directory)
        made.save_files(model.config, directory)
    loaded = load_system(tmp_path / "model")
    again = loaded.load(tmp_path / "model")
    assert [output.tolist() for output in loaded.write(again, rows, num_beams)] == outputs
    inputs = packed_form(source_ids([5, 9, 3]), framed(source_ids([4, 2, 7], seed=2)))
    assert torch.equal(again(**inputs).loss_sum, model(**inputs).loss_sum)
    emptied = loaded.empty(loaded.load_config(tmp_path / "model"))
    emptied.load_state_dict(model.state_dict())
    assert torch.equal(emptied.eval()(**inputs).loss_sum, model(**inputs).loss_sum)


def test_greedy_output_is_the_arg_max_without_a_cache(checkpoints):
    """The plain loop without a cache: every token computes the whole prefix again."""
    model = build("transformer", checkpoints)
    (source,) = source_ids([7])
    (output,) = model.generate_rows([source.tolist()], BeamOptions(8), lengths=[8])
    prefix = [2]
    for _ in range(7):
        logits = model.model(input_ids=source[None], decoder_input_ids=torch.tensor([prefix])).logits[0, -1]
        logits[[0, 3]] = -torch.inf  # padding and the end token, which comes eighth
        prefix.append(int(logits.argmax()))
    assert output == prefix[1:]


@pytest.mark.parametrize("name", ["random", "transformer"])
@pytest.mark.parametrize("num_beams", [1, 3])
def test_outputs_can_be_made_to_have_given_numbers_of_tokens(num_beams, name, checkpoints):
    model = build(name, checkpoints)
    rows = [row.tolist() for row in source_ids([7, 3, 5, 4])]
    lengths = [9, 1, 4, 12]
    outputs = model.generate_rows(rows, BeamOptions(12, num_beams=num_beams), lengths=lengths)
    assert [len(output) + 1 for output in outputs] == lengths
    alone = [
        model.generate_rows([row], BeamOptions(12, num_beams=num_beams), lengths=[length])[0]
        for row, length in zip(rows, lengths, strict=True)
    ]
    assert outputs == alone


def test_special_tokens_and_vocabularies_are_said(checkpoints):
    source, target = tokenizer(), tokenizer(41)
    random = system("random", checkpoints, source, target).build().model
    transformer = system("transformer", checkpoints, source, target).build().model
    for model in (random, transformer):
        config = model.config
        assert (config.decoder_start_token_id, config.eos_token_id, config.pad_token_id) == (2, 3, 0)
        assert model.generation_config.decoder_start_token_id == 2
        assert model.generation_config.eos_token_id == 3
        assert model.generation_config.num_beams == 4
        assert model.get_output_embeddings().weight.shape == (41, 12)
    assert random.config.vocab_size == 41
    assert random.config.decoder.is_decoder
    assert random.config.decoder.add_cross_attention
    assert not random.config.encoder.is_decoder
    assert transformer.config.encoder_layers == 2
    assert transformer.config.decoder_layers == 1


def test_the_transformer_of_the_paper_has_six_layers_in_each_half(checkpoints):
    config = system("transformer", checkpoints, size={}).config()
    assert (config.encoder_layers, config.decoder_layers, config.d_model) == (6, 6, 512)
    assert config.share_encoder_decoder_embeddings


def test_shared_halves_are_one_set_of_weights(checkpoints):
    plain, tied = (sum(p.numel() for p in build(name, checkpoints).parameters()) for name in ("bert2bert", "tied"))
    assert tied < 0.6 * plain
    model = build("tied", checkpoints)
    decoder = model.model.decoder.bert
    assert decoder.encoder.layer[0].intermediate is model.model.encoder.encoder.layer[0].intermediate
    assert decoder.encoder.layer[0].crossattention is not None


def test_label_smoothing_acts_in_training_mode_only(checkpoints):
    inputs = packed_form(source_ids([5, 9]), framed(source_ids([4, 2], seed=2)))
    plain = build("transformer", checkpoints, dropout=0.0)
    smooth = build("transformer", checkpoints, dropout=0.0, label_smoothing=0.1)
    assert torch.equal(plain(**inputs).loss_sum, smooth(**inputs).loss_sum)
    logits = plain(**inputs, return_logits=True).logits
    expected = 0.9 * plain(**inputs).loss_sum - 0.1 * logits.log_softmax(-1).mean(-1).sum()
    torch.testing.assert_close(smooth.train()(**inputs).loss_sum, expected)


@pytest.mark.parametrize("name", ["bert", "gpt", "roberta"])
def test_classifiers_are_the_same_packed_padded_and_reloaded(name, checkpoints, tmp_path):
    made = classifier(checkpoints[name], "mnli")
    model = made.build().eval()
    sources = source_ids([5, 9, 3])
    output = model(**packed_form(sources), labels=torch.tensor([0, 2, 1]))
    alone = torch.cat([model(source[None]).logits for source in sources])
    torch.testing.assert_close(output.logits, alone)
    torch.testing.assert_close(output.loss_sum, F.cross_entropy(alone, torch.tensor([0, 2, 1]), reduction="sum"))
    model.save_pretrained(tmp_path / "model")
    made.save_files(model.config, tmp_path / "model")
    again = load_system(tmp_path / "model").load(tmp_path / "model")
    assert torch.equal(again(**packed_form(sources)).logits, output.logits)


def test_segments_reach_bert(checkpoints):
    model = classifier(checkpoints["bert"], "stsb").build().eval()
    inputs = packed_form(source_ids([5, 9]))
    types = torch.zeros_like(inputs["input_ids"])
    types[3:5] = 1
    assert not torch.equal(model(**inputs, token_type_ids=types).logits[0], model(**inputs).logits[0])


@pytest.mark.parametrize(
    ("section", "fields", "message"),
    [
        (Bert2bertSection, {}, "give either encoder"),
        (Bert2bertSection, {"encoder": "a", "decoder": "b", "tie_encoder_decoder": True}, "remove decoder"),
        (Bert2bertSection, {"decoder": "b", "size": SIZE}, "decoder needs encoder"),
        (Bert2bertSection, {"size": SIZE, "tie_encoder_decoder": True}, "equal numbers of encoder_layers"),
        (TransformerSection, {"size": {"hidden_size": 10, "num_attention_heads": 3}}, "not a multiple"),
    ],
)
def test_bad_settings_are_told(section, fields, message):
    with pytest.raises(ValueError, match=message):
        section(kind=section.model_fields["kind"].annotation.__args__[0], **fields)


def test_bad_checkpoints_are_told(checkpoints, tmp_path):
    large = tokenizer(VOCAB + 3)
    with pytest.raises(CheckpointError, match=r"none: cannot be read as a sequence-to-sequence model"):
        system("bart", {**checkpoints, "bart": str(tmp_path / "none")}).config()
    with pytest.raises(CheckpointError, match=r"is a bart model, but bert2bert needs checkpoints of one of: bert,"):
        system("bert2bert", {**checkpoints, "bert": checkpoints["bart"]}).config()
    with pytest.raises(CheckpointError, match="has no decoder_start_token_id"):
        system("bart", {**checkpoints, "bart": checkpoints["bert"]}).config()
    with pytest.raises(DataError, match=r"has 53 tokens, but the tokenizer has 56"):
        system("bert2bert", checkpoints, tokenizer(), large).config()
    with pytest.raises(ConfigError, match="different vocabularies"):
        system("tied", checkpoints, tokenizer(), tokenizer(41)).config()
    with pytest.raises(ConfigError, match="max_source_length 25: the model has 24 positions"):
        system("bert2bert", checkpoints, lengths=Lengths(25, 8)).config()
    with pytest.raises(ConfigError, match="max_source_length 25: the model has 24 positions"):
        classifier(checkpoints["bert"], "mnli", lengths=Lengths(25, 8)).config()
    with pytest.raises(ConfigError, match=r"max_source_length 25: the model has 24 positions; set it to 24"):
        classifier(checkpoints["roberta"], "mnli", lengths=Lengths(25, 8)).config()
    with pytest.raises(CheckpointError, match="cannot be read as a model for classification"):
        read_classifier(tmp_path)
    with pytest.raises(CheckpointError, match="lacks weights such as"):
        read_classifier(checkpoints["bert"])
    with pytest.raises(ConfigError, match="num_beams is 0"):
        BeamOptions(4, num_beams=0)
    with pytest.raises(ConfigError, match="give a minimum of at least 0"):
        BeamOptions(3, min_new_tokens=4)


def test_a_tokenizer_that_is_not_the_checkpoints_is_told(checkpoints, tmp_path):
    config = BartConfig.from_pretrained(checkpoints["bart"])
    config.eos_token_id = 7
    config.save_pretrained(tmp_path)
    with pytest.raises(DataError, match="its eos_token_id is 7, but the tokenizer's is 3"):
        system("bart", {**checkpoints, "bart": str(tmp_path)}).config()
    with pytest.raises(ConfigError, match=r"data.tokenizer: a model with random weights has no tokenizer"):
        Transformer.make_codec(get_task("translation"), TransformerSection(kind="transformer"), TaskDataSection())


def test_flops_are_those_of_the_matrix_products(checkpoints):
    """torch counts the FLOPs of one sequence without padding, with attention as plain matrix products."""
    made = system("random", checkpoints)
    model = made.build().eval()
    model.model.set_attn_implementation("eager")
    inputs = packed_form(source_ids([9]), framed(source_ids([5], seed=2)))
    with FlopCounterMode(display=False) as counter:
        model(**inputs)
    predicted = np.array([6])  # the model is given the first of the target's seven tokens
    assert counter.get_total_flops() == pytest.approx(seq2seq_flops(model.config, np.array([9]), predicted), rel=0.05)


def test_a_saved_baseline_is_a_plain_hugging_face_directory(checkpoints, tmp_path):
    model = build("transformer", checkpoints)
    model.save_pretrained(tmp_path / "model")
    plain = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "model")
    (source,) = source_ids([7])
    ours = model.generate_rows([source.tolist()], BeamOptions(10, num_beams=4))[0]
    theirs = plain.generate(source[None], max_new_tokens=10, do_sample=False)[0, 1:].tolist()
    assert theirs[: len(ours)] == ours
