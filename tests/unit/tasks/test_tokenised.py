"""Text to ids: special tokens, cutting, the cache, and the batches made from it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from transformers import BertConfig, BertModel

from bnb_ds.errors import CheckpointError, ConfigError, DataError
from bnb_ds.systems.bnb import BnbClassifier, BnbGenerator, BnbModelSection
from bnb_ds.systems.task_samples import TaskSamples
from bnb_ds.tasks.codec import Codec
from bnb_ds.tasks.data_section import TaskDataSection
from bnb_ds.tasks.registry import get_task
from bnb_ds.tasks.text_lengths import Lengths
from bnb_ds.tasks.tokenised import cached_directory, rows_lines, tokenise
from data_prep.sources.documents import Document
from data_prep.tokenise.vocab import train_vocabulary
from tests.subwords import byte_level

SIZE = {
    "hidden_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 64,
}


@pytest.fixture
def codec(small_tokenizer):
    return Codec(small_tokenizer, small_tokenizer)


def test_sources_are_what_the_tokenizer_makes_of_them(codec, small_tokenizer):
    for texts in (("The value of it",), ("The value", "of the object is")):
        (tokens,) = codec.encode_sources([texts], 64, cut="longest").tokens
        expected = small_tokenizer(*texts)
        assert tokens.tolist() == expected["input_ids"]
    encoded = codec.encode_sources([("The value", "of the object")], 64, cut="longest")
    types = small_tokenizer("The value", "of the object")["token_type_ids"]
    assert encoded.first_lengths == [types.index(1)]
    (literal,) = codec.encode_sources([("a [SEP] b",)], 64, cut="longest").tokens
    assert np.count_nonzero(literal == small_tokenizer.sep_token_id) == 1, "a text that spells [SEP] does not hold it"


@pytest.mark.parametrize("max_length", [5, 8, 9, 12, 40])
def test_pairs_are_cut_as_the_tokenizer_cuts_them(codec, small_tokenizer, max_length):
    short, long = "the value", "of the object that is returned by a function of the module"
    for texts in ((short, long), (long, short), (long, long)):
        encoded = codec.encode_sources([texts], max_length, cut="longest")
        expected = small_tokenizer(*texts, truncation="longest_first", max_length=max_length)["input_ids"]
        assert encoded.tokens[0].size == len(expected) <= max_length
        only_last = codec.encode_sources([texts], max_length, cut="last").tokens[0]
        whole = small_tokenizer(*texts)["input_ids"]
        assert only_last.size == min(max_length, len(whole))
        room = max_length - 3
        assert only_last[1 : 1 + min(room, 2)].tolist() == whole[1 : 1 + min(room, 2)]
    assert codec.encode_sources([(short, long)], 5, cut="last").num_cut == 1


@pytest.mark.parametrize("max_length", [4, 5, 6, 8, 9, 12, 17, 40])
@pytest.mark.parametrize("answer", ["of the object", "the", "by a function of", "the module", "value value", ""])
def test_what_surrounds_the_first_text_is_kept(codec, small_tokenizer, answer, max_length):
    passage = "value of the object that is returned by a function of the module"
    encoded = codec.encode_sources([(answer, passage)], max_length, cut="around")
    first, second = (small_tokenizer(text, add_special_tokens=False)["input_ids"] for text in (answer, passage))
    room = max_length - 3
    kept = encoded.tokens[0][encoded.first_lengths[0] : -1].tolist()
    assert encoded.tokens[0][1 : encoded.first_lengths[0] - 1].tolist() == first[:room], "the first text comes first"
    room -= len(first[:room])
    assert len(kept) == min(room, len(second))
    begins = [begin for begin in range(len(second)) if second[begin : begin + len(kept)] == kept]
    assert begins, "one piece of the passage"
    assert encoded.num_cut == (len(kept) < len(second) or len(first) > max_length - 3)
    found = [place for place in range(len(second)) if first and second[place : place + len(first)] == first]
    if found and room >= len(first):
        assert any(begin <= found[0] and found[0] + len(first) <= begin + room for begin in begins)
        before, after = found[0] - begins[0], begins[0] + room - found[0] - len(first)
        at_an_end = begins[0] == 0 or begins[0] + room == len(second)
        assert at_an_end or abs(before - after) <= 1, "in the middle"
    elif not found:
        assert begins[0] == 0


def test_a_byte_level_tokenizer_finds_the_first_text_too():
    tokenizer = byte_level()
    passage = "Paris is large, and (London) is larger; but of all towns Rome is the oldest, as everybody knows"
    for answer, neighbours in (("Rome", "all towns Rome is the"), ("Paris", "Paris is large"), ("London", "(London)")):
        (tokens,) = Codec(tokenizer, tokenizer).encode_sources([(answer, passage)], 30, cut="around").tokens
        assert tokens.size == 30
        assert neighbours in tokenizer.decode(tokens, skip_special_tokens=True), answer


def test_a_recipe_says_how_two_texts_are_cut(tmp_path, codec):
    task, rows_of = get_task("squad_qg"), {}
    passage = "the value of the object that is returned by a function of the module"
    row = {"id": "1", "title": "t", "context": passage, "question": "what", "answers": {"text": ["the module"]}}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    for cut in ("longest", "last", "around"):
        fields = {"train": str(tmp_path / "a.jsonl"), "cache_dir": str(tmp_path), "max_source_length": 10}
        rows_of[cut] = tokenise(task, TaskDataSection(**fields, cut=cut), "train", codec)
        shown = codec.source.decode(rows_of[cut].sources(np.array([0]))[0], skip_special_tokens=True)
        assert shown.endswith("of the module" if cut == "around" else "of the object"), cut
    assert len({rows.directory for rows in rows_of.values()}) == 3
    usual = tokenise(task, TaskDataSection(**fields), "train", codec)
    assert usual.directory == rows_of["around"].directory, "the task's own"
    message = r"data\.cut last: is for two source texts, and task summarization reads one; remove it"
    with pytest.raises(ConfigError, match=message):
        Lengths.of(get_task("summarization"), TaskDataSection(cut="last"))


def test_token_types_of_pairs_are_for_tasks_of_two_texts(codec):
    section = BnbModelSection(kind="bnb", size=SIZE, pair_types=True)
    config = BnbGenerator(get_task("squad_qg"), Lengths(64, 32), codec, section).config()
    assert config.pair_separator_id == codec.source.sep_token_id
    message = r"model\.pair_types: is for two source texts, and task summarization reads one; remove it"
    with pytest.raises(ConfigError, match=message):
        BnbGenerator(get_task("summarization"), Lengths(64, 32), codec, section).config()


def test_a_model_is_read_with_the_cut_it_was_trained_with():
    saved = {"source": 64, "target": 32}
    assert Lengths.restored(get_task("squad_qg"), {**saved, "cut": "around"}) == Lengths(64, 32, "around")
    assert Lengths.restored(get_task("squad_qg"), saved).cut == "last", "as when nothing was saved"
    assert Lengths.restored(get_task("rte"), saved).cut == "longest"
    with pytest.raises(ValueError, match="no way to cut: 'middle'"):
        Lengths.restored(get_task("rte"), {**saved, "cut": "middle"})


def test_no_room(codec):
    with pytest.raises(
        ConfigError, match=r"data\.max_source_length 3: leaves no room for text beside 3 special tokens"
    ):
        codec.encode_sources([("a", "b")], 3, cut="last")


def rows(path, number=40):
    lines = [
        json.dumps({"document": "the value of the object " * (1 + i % 5), "summary": f"the value {i}"}) + "\n"
        for i in range(number)
    ]
    path.write_text("".join(lines))
    return str(path)


def test_long_work_shows_progress(tmp_path, codec, monkeypatch):
    """The other ranks wait meanwhile, and their watchdog must see that the job goes on."""
    monkeypatch.setattr("bnb_ds.tasks.tokenised._CHUNK", 10)
    data = TaskDataSection(train=rows(tmp_path / "a.jsonl"), cache_dir=str(tmp_path / "cache"))
    marks = []
    tokenise(get_task("summarization"), data, "train", codec, lambda: marks.append(1))
    assert len(marks) == 4


def test_the_cache_is_named_by_content(tmp_path, codec):
    path = rows(tmp_path / "a.jsonl")
    task = get_task("summarization")
    data = TaskDataSection(train=path, validation=path, cache_dir=str(tmp_path / "cache"), max_source_length=16)
    first = tokenise(task, data, "train", codec)
    made = (first.directory / "info.json").stat().st_mtime_ns
    assert first.info["num_sources_cut"] > 0
    assert len(first) == 40
    assert first.source_lengths(np.arange(40)).max() == 16
    again = tokenise(task, data, "train", codec)
    assert (again.directory / "info.json").stat().st_mtime_ns == made
    assert tokenise(task, data, "validation", codec).references()[3] == "the value 3"
    for change in ({"max_source_length": 20}, {"max_train_samples": 5}, {"skip_bad_rows": True}):
        assert tokenise(task, data.model_copy(update=change), "train", codec).directory != first.directory
    rows(tmp_path / "a.jsonl", 39)
    assert len(tokenise(task, data, "train", codec)) == 39
    (tmp_path / "a.jsonl").write_text("")
    with pytest.raises(DataError, match="task summarization: the train split is empty"):
        tokenise(task, data, "train", codec)
    with pytest.raises(DataError, match=r"absent: no such file; data\.train names it"):
        tokenise(task, data.model_copy(update={"train": str(tmp_path / "absent")}), "train", codec)


def test_a_list_with_a_byte_order_mark_is_tokenised_anew(tmp_path, codec, monkeypatch):
    """Earlier releases lost its first title, and what they have cached lacks those rows."""
    rows = [
        {"title": title, "context": "the value", "question": "value?", "answers": {"text": ["value"]}} for title in "AB"
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbfA\nC\n")
    names = {"train": str(tmp_path / "a.jsonl"), "documents": {"train": str(tmp_path / "list.txt")}}
    data = TaskDataSection(**names, cache_dir=str(tmp_path))
    with monkeypatch.context() as earlier:
        earlier.setattr("bnb_ds.tasks.tokenised._has_mark", lambda path: False)
        before = cached_directory(get_task("squad_qg"), data, "train", codec)
    split = tokenise(get_task("squad_qg"), data, "train", codec)
    assert split.directory != before
    assert rows_lines(split.info) == [
        "2 rows read, 1 kept, 1 left out",
        "1 left out: of documents that are not listed",
        "1 listed documents are not in the data (C)",
    ]


def test_batches_of_texts(tmp_path, codec):
    task = get_task("summarization")
    data = TaskDataSection(train=rows(tmp_path / "a.jsonl"), cache_dir=str(tmp_path), max_source_length=64)
    section = BnbModelSection(kind="bnb", size=SIZE, decoder_length_ratio=0.5)
    system = BnbGenerator(task, Lengths.of(task, data), codec, section)
    split = tokenise(task, data, "train", codec)
    batch = TaskSamples(split, system).batch(np.array([7, 0, 4]), np.zeros(3, np.int64))
    for i, row in enumerate([7, 0, 4]):
        begin, end = batch.cu_seqlens[i : i + 2].tolist()
        source, target = "the value of the object " * (1 + row % 5), f"the value {row}"
        assert codec.source.decode(batch.input_ids[begin:end], skip_special_tokens=True) == source.strip()
        assert batch.decoder_lengths[i] == -(-(end - begin) // 2)
        written = batch.labels.split(batch.label_lengths.tolist())[i]
        assert codec.decode([written.numpy()]) == [target]
    # With half as many positions as source tokens, summaries of short documents do not fit, and are counted.
    needed = batch.label_lengths.numpy()
    assert batch.num_infeasible == int((batch.decoder_lengths < needed).sum()) > 0
    assert batch.loss_count == needed[batch.decoder_lengths >= needed].sum()


def test_batches_of_labelled_pairs(tmp_path, codec, small_tokenizer):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"sentence1": "the value", "sentence2": "of it", "label": 2.5}) + "\n")
    task = get_task("stsb")
    data = TaskDataSection(train=str(path), cache_dir=str(tmp_path), max_source_length=32)
    system = BnbClassifier(task, Lengths.of(task, data), codec, BnbModelSection(kind="bnb", size=SIZE))
    split = tokenise(task, data, "train", codec)
    batch = TaskSamples(split, system).batch(np.array([0]), np.array([0]))
    expected = small_tokenizer("the value", "of it")
    assert batch.input_ids.tolist() == expected["input_ids"]
    assert batch.token_type_ids.tolist() == expected["token_type_ids"]
    assert batch.labels.tolist() == [2.5]
    assert batch.loss_count == 1
    output = system.build()(**batch.model_inputs(batch.input_ids.device))
    assert output.loss_sum.shape == ()


def test_sources_beyond_the_positions(codec):
    section = BnbModelSection(kind="bnb", size=SIZE)
    for system in (BnbGenerator, BnbClassifier):
        task = get_task("summarization" if system is BnbGenerator else "sst2")
        with pytest.raises(ConfigError, match=r"data\.max_source_length 65: the encoder has 64 positions"):
            system(task, Lengths(65, 10), codec, section).config()
    predicted = BnbModelSection(kind="bnb", size=SIZE, decoder_length="predicted", decoder_positions="absolute")
    with pytest.raises(ConfigError, match=r"data\.max_target_length 65: the decoder has 64 positions"):
        BnbGenerator(get_task("summarization"), Lengths(10, 65), codec, predicted).config()


def bert_section(directory, vocab_size) -> BnbModelSection:
    """Save a model whose encoder is a BERT with this vocabulary, without a tokenizer."""
    BertModel(BertConfig(vocab_size=vocab_size, **SIZE)).save_pretrained(directory)
    return BnbModelSection(kind="bnb", encoder=str(directory))


def test_where_no_tokenizer_is_to_be_had(tmp_path):
    cases = [
        (
            BnbModelSection(kind="bnb", size=SIZE),
            r"data\.tokenizer: a model with random weights has no tokenizer; give",
        ),
        (bert_section(tmp_path / "bert", 50), r"bert: holds no tokenizer; give one with data\.tokenizer"),
    ]
    for section, message in cases:
        with pytest.raises(ConfigError, match=message):
            BnbClassifier.make_codec(get_task("sst2"), section, TaskDataSection())


@pytest.mark.parametrize("name", ["no-such/bert", "work/models/absent", "/nowhere/bert"])
def test_checkpoints_that_are_not_there(name):
    """The checkpoint is on the hub, which is offline, or is a local path."""
    for section in (BnbModelSection(kind="bnb", encoder=name), BnbModelSection(kind="bnb", checkpoint=name)):
        with pytest.raises(
            CheckpointError, match=f"^{name}: its tokenizer cannot be fetched; give a local directory that holds it$"
        ):
            BnbClassifier.make_codec(get_task("sst2"), section, TaskDataSection())


def test_tokenizers_of_another_model(codec, small_texts, tmp_path):
    with pytest.raises(
        DataError, match=r"model: its vocabulary has 50 tokens, but the tokenizer has \d+; remove data\.tokenizer"
    ):
        BnbClassifier(get_task("sst2"), Lengths(20, 8), codec, bert_section(tmp_path / "bert", 50)).config()
    train_vocabulary((Document(str(i), t, "") for i, t in enumerate(small_texts)), tmp_path / "other", vocab_size=400)
    other = bert_section(tmp_path / "other", 700)
    message = r"other: its tokenizer is not the one that data\.tokenizer or data\.target_tokenizer names; remove that"
    with pytest.raises(DataError, match=message):
        BnbGenerator(get_task("summarization"), Lengths(20, 8), codec, other).config()


def test_what_became_of_the_rows(tmp_path, codec):
    lines = [
        {"document": "the value " * 30, "summary": "the value"},
        {"document": "", "summary": "x"},
        {"document": "the value"},
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines[:2]) + "\n\n" + json.dumps(lines[2]) + "\n")
    data = TaskDataSection(train=str(path), cache_dir=str(tmp_path), max_source_length=16, skip_bad_rows=True)
    task = get_task("summarization")
    assert rows_lines(tokenise(task, data, "train", codec).info) == [
        "3 rows read, 1 kept, 2 left out",
        "1 left out: empty source",
        "1 left out: no column 'summary'",
        "1 sources cut to the longest length",
        "1 blank lines passed over",
    ]
    few = tokenise(task, data.model_copy(update={"max_train_samples": 1}), "train", codec)
    assert rows_lines(few.info)[0] == "1 rows read, 1 kept, 0 left out (ends at data.max_train_samples 1)"
    path.write_text(json.dumps({"text": "x"}))
    message = r"the train split is empty: 1 rows read, left out: 1 no column 'document'; check the files named in data"
    with pytest.raises(DataError, match=message):
        tokenise(task, data, "train", codec)
