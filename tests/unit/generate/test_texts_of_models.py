"""A model reads and writes text as in its training, wherever it runs: `evaluate`, `predict`, `generate`, Python."""

from __future__ import annotations

import functools
import json
import shutil

import pytest

from bnb_ds.cli import main
from bnb_ds.data.tokenization import tokenizer_from_vocabulary
from bnb_ds.errors import ConfigError, DataError
from bnb_ds.evaluate.model import evaluate_model
from bnb_ds.evaluate.predict import predict
from bnb_ds.generate.open_model import fingerprint
from bnb_ds.generate.pipeline import BnbPipeline
from bnb_ds.generate.reconstruct import reconstructions
from bnb_ds.modeling import BnbForConditionalGeneration
from bnb_ds.tasks.codec import Codec
from bnb_ds.tasks.registry import TASKS, get_task
from bnb_ds.tasks.spacing import Spacing
from tests.exports import MAX_TOKENS, TASK_LENGTHS, save_model, save_task_model

pytestmark = pytest.mark.slow

GENERATION = [name for name, task in TASKS.items() if task.is_generation]
#: tokens are read off the slots in other ways
READERS = {
    "token": {"decoder_length": "predicted"},
    "token-absolute": {"decoder_length": "predicted", "decoder_positions": "absolute"},
    "dag": {"target": "dag"},
    "dag-predicted": {"target": "dag", "decoder_length": "predicted"},
    "tokens": {"target": "dag", "decoder_tokens": True},
}


def rows_of(name: str, texts: list[str]) -> list[tuple[str, ...]]:
    """Sources of a task: short ones, ones longer than it reads, and ones with the letters of special tokens."""
    single = [" ".join(text.split()[: 2 + 3 * i]) for i, text in enumerate(texts[:12])]
    single += [
        "[SEP] [PAD] the [MASK] value [CLS]",
        "the  value\u00a0of\u2028it ",
        "\u4e2d\u6587",
        "\u200b",
        "a" * 300,
        "[UNK]",
    ]
    if len(get_task(name).sources) == 1:
        return [(text,) for text in single]
    return [(" ".join(texts[-1 - i].split()[: 1 + i % 20]), text) for i, text in enumerate(single)]


@pytest.fixture(scope="module")
def codec_of(small_texts, small_tokenizer, other_tokenizer):
    @functools.cache
    def made(*, is_two: bool, exact: bool) -> Codec:
        target = other_tokenizer if is_two else small_tokenizer
        texts = [text.swapcase() if is_two else text for text in small_texts]
        return Codec(small_tokenizer, target, Spacing.learn(target, texts, exact=exact))

    return lambda name, exact=False: made(is_two=get_task(name).two_languages, exact=exact)


@pytest.fixture(scope="module")
def translator(codec_of, tmp_path_factory):
    """A model with two tokenizers."""
    return save_task_model(tmp_path_factory.mktemp("translator") / "model", "translation", codec_of("translation"))


@pytest.fixture(scope="module")
def pretrained(small_tokenizer, tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("pretrained") / "model", small_tokenizer)


def evaluated(model, name: str, rows: list[tuple[str, ...]], folder) -> list[str]:
    """The outputs of `bnb-ds evaluate`."""
    task = get_task(name)
    columns = {column: f"s{i}" for i, column in enumerate(task.sources)} | {task.target: "target"}
    target = "the value" if task.is_generation else 1
    data = folder / "rows.jsonl"
    data.write_text(
        "".join(json.dumps({f"s{i}": text for i, text in enumerate(row)} | {"target": target}) + "\n" for row in rows)
    )
    split = task.validation_splits[0]
    overrides = [f"data.{split}={data}", f"data.cache_dir={folder}", f"data.columns={json.dumps(columns)}"]
    done = evaluate_model(model, overrides=overrides, output=folder / "evaluation")
    return (done.directory / "generated_predictions.txt").read_text(encoding="utf-8").split("\n")[:-1]


def generated(model, rows: list[tuple[str, ...]], folder, *arguments: str) -> list[str]:
    """The outputs of `bnb-ds generate`; the two texts of a source have a tab between them."""
    (folder / "in.txt").write_text("".join("\t".join(row) + "\n" for row in rows), encoding="utf-8")
    command = ["generate", str(model), "--input", str(folder / "in.txt"), "--output", str(folder / "out.txt")]
    assert main([*command, "--overwrite", *arguments]) == 0
    return (folder / "out.txt").read_text(encoding="utf-8").split("\n")[:-1]


@pytest.mark.parametrize("name", GENERATION)
def test_generate_writes_what_evaluate_writes(name, codec_of, small_texts, tmp_path):
    model = save_task_model(tmp_path / "model", name, codec_of(name, exact=name == "wmt14_en_de"))
    rows = rows_of(name, small_texts)
    expected = evaluated(model, name, rows, tmp_path)
    assert generated(model, rows, tmp_path) == expected
    assert len(set(expected)) > 10
    assert BnbPipeline.from_pretrained(model, device="cpu")(["\t".join(row) for row in rows]) == expected


@pytest.mark.parametrize("reader", READERS)
def test_so_does_a_model_whose_slots_are_read_in_another_way(reader, codec_of, small_texts, tmp_path):
    model = save_task_model(tmp_path / "model", "translation", codec_of("translation"), **READERS[reader])
    rows = rows_of("translation", small_texts)
    expected = evaluated(model, "translation", rows, tmp_path)
    assert generated(model, rows, tmp_path) == expected
    assert len(set(expected)) > 5


@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if not task.is_generation and not task.is_own])
def test_predict_says_what_evaluate_says(name, codec_of, small_texts, tmp_path):
    model = save_task_model(tmp_path / "model", name, codec_of(name))
    rows, task = rows_of(name, small_texts), get_task(name)
    expected = evaluated(model, name, rows, tmp_path)
    data = tmp_path / "sources.jsonl"
    data.write_text("".join(json.dumps(dict(zip(task.sources, row, strict=True))) + "\n" for row in rows))
    predict(model, data, tmp_path / "said.jsonl")
    said = [json.loads(line) for line in (tmp_path / "said.jsonl").read_text().splitlines()]
    assert [row["label"] if task.labels else f"{row['score']:.4f}" for row in said] == expected
    assert len({json.dumps({**row, "id": None}) for row in said}) > 5


def ids_of(model, texts: list[str], **settings) -> list[list[int]]:
    return BnbPipeline.from_pretrained(model, device="cpu", **settings).encode(texts)[0]


def test_a_task_model_reads_what_its_training_read(translator, small_tokenizer):
    texts = ["the value " * 30, "[SEP] b", "\u200b", " "]
    pipeline = BnbPipeline.from_pretrained(translator, device="cpu")
    sources, are_cut = pipeline.encode(texts)
    assert are_cut == [True, False, False, False]
    assert pipeline.reader.max_length == TASK_LENGTHS.source == len(sources[0])
    plain = small_tokenizer(texts[1], split_special_tokens=True)["input_ids"]
    assert sources[1:] == [plain, [2, 3], []]
    assert plain.count(3) == 1, "only the last token is [SEP]"


def test_a_pretrained_model_knows_the_mask_alone_unless_asked(pretrained, small_tokenizer):
    text = "a [SEP] the [MASK] value [PAD]"
    cls, sep, mask, pad = small_tokenizer.convert_tokens_to_ids(["[CLS]", "[SEP]", "[MASK]", "[PAD]"])
    (default,), (none,), (both,) = (ids_of(pretrained, [text], special_tokens=kind) for kind in (None, "none", "all"))
    assert default == ids_of(pretrained, [text], special_tokens="mask")[0]
    assert [default.count(token) for token in (cls, sep, mask, pad)] == [1, 1, 1, 0]
    assert [none.count(token) for token in (cls, sep, mask, pad)] == [1, 1, 0, 0]
    assert none == small_tokenizer(text, split_special_tokens=True)["input_ids"]
    assert both == small_tokenizer(text)["input_ids"]
    assert [both.count(token) for token in (cls, sep, mask, pad)] == [1, 2, 1, 1]
    assert ids_of(pretrained, ["", "\u200b"]) == [[], []]


def test_words_that_are_banned_and_scored_are_those_of_the_target(translator, other_tokenizer, monkeypatch):
    made = []
    monkeypatch.setattr("bnb_ds.generate.pipeline.NgramLm", lambda *arguments: made.append(arguments))
    pipeline = BnbPipeline.from_pretrained(translator, device="cpu", bad_words=["THE"], lm_path="x")
    assert pipeline.options.bad_words is not None
    assert not pipeline.options.bad_words.allow(other_tokenizer("THE", add_special_tokens=False)["input_ids"])
    ((_, rules),) = made
    assert rules.pieces == other_tokenizer.convert_ids_to_tokens(list(range(pipeline.engine.config.vocab_size)))
    silent = {number for number, text in enumerate(rules.texts) if text is None}
    assert silent == set(other_tokenizer.all_special_ids)


def test_pieces_of_a_vocabulary_larger_than_the_tokenizers(small_tokenizer):
    codec = Codec(small_tokenizer, small_tokenizer)
    pieces = codec.target_rules(len(small_tokenizer) + 2).pieces
    assert pieces == [*small_tokenizer.convert_ids_to_tokens(list(range(len(small_tokenizer)))), "", ""]


def test_words_of_targets_that_keep_their_punctuation():
    """Such ids have pieces that the tokenizer alone never writes."""
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = tokenizer_from_vocabulary([*specials, "a", ",", "##b", "##,", "##a"], lowercase=False)
    codec = Codec(tokenizer, tokenizer, Spacing.learn(tokenizer, ["ab, ab"], exact=True))
    assert codec.target_ids(["ab,"]) == [[5, 7, 8]]
    assert tokenizer("ab,", add_special_tokens=False)["input_ids"] == [5, 7, 6]


def test_reconstructions_are_written_with_the_target_tokenizer(translator, small_shards, monkeypatch):
    plain, outputs = BnbForConditionalGeneration.generate, []

    def recorded(self, *arguments, **options):
        outputs.append(plain(self, *arguments, **options))
        return outputs[-1]

    monkeypatch.setattr(BnbForConditionalGeneration, "generate", recorded)
    shown = list(
        reconstructions(translator, small_shards, num_documents=3, max_length=14, mask_probability=0.2, seed=0)
    )
    assert [text for _, text, _ in shown] == Codec.load(translator).decode([output[0].numpy() for output in outputs])


def test_segments_are_reconstructed_in_their_blocks(small_shards, small_tokenizer, tmp_path):
    """Each [MASK] between two segments is fixed, so an output has as many segments as the target."""
    graph = {"target": "dag", "decoder_positions": "absolute", "decoder_length_max": MAX_TOKENS, "link_positions": 128}
    special = {"mask_token_id": small_tokenizer.mask_token_id, "bos_token_id": small_tokenizer.cls_token_id}
    special |= {"eos_token_id": small_tokenizer.sep_token_id, "segment_blocks": True}
    shape = {"decoder_length_ratio": 1.0, "decoder_length_offset": 8}
    model = save_model(tmp_path / "model", small_tokenizer, **graph, **special, **shape)
    shown = reconstructions(model, small_shards, num_documents=8, max_length=40, mask_probability=0.45, seed=0)
    numbers = [tuple(text.count("[MASK]") for text in texts) for texts in shown]
    assert any(in_target for *_, in_target in numbers)
    assert all(in_output >= in_target for _, in_output, in_target in numbers), numbers


def test_a_source_of_two_texts_needs_a_tab(codec_of, tmp_path, capsys):
    model = save_task_model(tmp_path / "model", "squad_qg", codec_of("squad_qg"))
    (tmp_path / "in").write_text("answer\tcontext\n\nthe context alone, " + "x" * 60 + "\n")
    command = ["generate", str(model), "--input", str(tmp_path / "in"), "--output", str(tmp_path / "o")]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert said == (
        f"bnb-ds: error: {tmp_path / 'in'}: line 3: task squad_qg reads two texts (answers.text.0, context) with a tab"
        f" between them, but 'the context alone, {'x' * 21}' is one text; add the other\n"
    )


def test_half_a_character_is_refused(pretrained):
    """JSON and shells can give one; tokenizers only say that it is no text."""
    with pytest.raises(DataError, match=r"'the \\ud800' holds half of a character: give whole ones, in UTF-8"):
        BnbPipeline.from_pretrained(pretrained)(["a", "the \ud800"])


def test_what_cannot_be_read_is_one_line(pretrained, translator, codec_of, tmp_path, capsys):
    labels = save_task_model(tmp_path / "labels", "sst2", codec_of("sst2"))
    lost, larger = (shutil.copytree(translator, tmp_path / name) for name in ("lost", "larger"))
    shutil.rmtree(lost / "target_tokenizer")
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"t{i}" for i in range(900))]
    tokenizer_from_vocabulary(tokens, lowercase=False).save_pretrained(larger)
    baseline = shutil.copytree(translator, tmp_path / "baseline")
    made_for = json.loads((baseline / "task.json").read_text())
    (baseline / "task.json").write_text(json.dumps({**made_for, "kind": "bert2bert"}))
    for model, flags, message in (
        (baseline, [], "baseline: is a model of kind bert2bert; use `bnb-ds predict`"),
        (labels, [], "labels: was fine-tuned for sst2, which has labels; use `bnb-ds predict`"),
        (translator, ["--special-tokens", "all"], "was fine-tuned for translation, without special tokens in texts"),
        (lost, [], "tokens, but the tokenizer has 600; restore the tokenizers of its training"),
        (larger, [], "its encoder has 600 tokens, but the tokenizer has 905; restore the tokenizers of its training"),
    ):
        command = ["generate", str(model), "--input", __file__, "--output", str(tmp_path / "o"), *flags]
        assert main(command) == 2
        said = capsys.readouterr().err
        assert message in said
        assert said.count("\n") == 1
    with pytest.raises(ConfigError, match=r"--special-tokens masks: did you mean 'mask'\?"):
        BnbPipeline.from_pretrained(pretrained, special_tokens="masks")


def test_another_target_tokenizer_is_another_model(translator, tmp_path):
    copy = shutil.copytree(translator, tmp_path / "model")
    before = fingerprint(copy)
    assert before == fingerprint(translator)
    path = copy / "target_tokenizer" / "tokenizer.json"
    path.write_text(path.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    assert fingerprint(copy) != before
