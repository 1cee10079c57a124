"""Documents into shards, and the documentation of the format."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import data_prep
from bnb_ds.data.tokenization import load_tokenizer, save_tokenizer, tokenizer_hash
from bnb_ds.errors import DataError
from bnb_ds.shards import manifest as shard_manifest
from bnb_ds.shards.manifest import SPLITS, parse_manifest
from bnb_ds.shards.reader import TokenShards
from data_prep.sources.documents import is_held_out
from data_prep.sources.text import find_files, read_documents
from tests.prep_helpers import content, prep

FORMAT = Path(data_prep.__file__).with_name("FORMAT.md")


@pytest.fixture
def tokenizer(small_tokenizer, tmp_path: Path) -> Path:
    save_tokenizer(small_tokenizer, tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def rows_file(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(texts)))
    return path


def assert_equal_to_the_tokenizer(output: Path, ids: list[str], texts: list[str], tokenizer, holdout: float) -> None:
    """The shards hold the tokenizer's own encoding of every text, in order, in the split of its id."""
    expected = dict(zip(ids, tokenizer(texts, add_special_tokens=False)["input_ids"], strict=True))
    for split in SPLITS:
        shards = TokenShards(output, split, verify_hashes=True)
        of_split = [document_id for document_id in ids if is_held_out(document_id, holdout) == (split == "heldout")]
        assert len(shards) == len(of_split) > 1
        for i, document_id in enumerate(of_split):
            assert shards.document(i).tolist() == expected[document_id]
            assert tokenizer.decode(shards.document(i)) == tokenizer.decode(expected[document_id])


def test_shards_hold_the_tokenizers_own_encoding(tmp_path: Path, tokenizer: Path, small_texts, small_tokenizer) -> None:
    path = rows_file(tmp_path / "a.jsonl", small_texts)
    sizes = ["--holdout", "0.1", "--tokens-per-shard", "10000"]
    prep("text", "--input", path, "--tokenizer", tokenizer, "--output", tmp_path / "s", *sizes)
    ids = [str(i) for i in range(len(small_texts))]
    assert_equal_to_the_tokenizer(tmp_path / "s", ids, small_texts, small_tokenizer, 0.1)
    train = TokenShards(tmp_path / "s")
    assert len([shard for shard in train.manifest.shards if shard.split == "train"]) > 1
    assert tokenizer_hash(load_tokenizer(train.tokenizer_dir)) == train.tokenizer_hash
    assert train.tokenizer_hash == tokenizer_hash(small_tokenizer)
    assert train.manifest.holdout.fraction == 0.1


def test_output_does_not_depend_on_batching(tmp_path: Path, tokenizer: Path, small_texts, monkeypatch) -> None:
    path = rows_file(tmp_path / "a.jsonl", small_texts)
    command = ["text", "--input", path, "--tokenizer", tokenizer, "--tokens-per-shard", "10000"]
    prep(*command, "--output", tmp_path / "one")
    monkeypatch.setattr("data_prep.sources.documents._BATCH_DOCUMENTS", 7)
    monkeypatch.setattr("data_prep.jobs.worker._BATCH_CHARACTERS", 3000)
    prep(*command, "--output", tmp_path / "other")
    assert content(tmp_path / "one") == content(tmp_path / "other")


def test_mask_in_a_text_is_text(tmp_path: Path, tokenizer: Path) -> None:
    path = rows_file(tmp_path / "a.jsonl", ["The [MASK] token and the [PAD] token."])
    prep("text", "--input", path, "--tokenizer", tokenizer, "--output", tmp_path / "s", "--holdout", "0")
    shards = TokenShards(tmp_path / "s")
    specials = {index for name, index in shards.special_ids.items() if name != "unk"}
    assert not specials & set(shards.document(0).tolist())


def test_corpus_without_text(tmp_path: Path, tokenizer: Path) -> None:
    paths = [rows_file(tmp_path / f"{name}.jsonl", ["", " "]) for name in "abcd"]
    message = r"a.jsonl, b.jsonl, c.jsonl, ...: no text \(8 empty documents\); choose another --input"
    with pytest.raises(DataError, match=message):
        prep("text", "--input", *paths, "--tokenizer", tokenizer, "--output", tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_reader_that_fails_leaves_nothing(tmp_path: Path, tokenizer: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "fine"}\n' * 5000 + '{"text": 1}\n')
    with pytest.raises(DataError, match=r"a.jsonl: line 5001: the text is of type int"):
        prep("text", "--input", path, "--tokenizer", tokenizer, "--output", tmp_path / "s")
    assert not (tmp_path / "s").exists()


@pytest.mark.slow
def test_wikipedia_decodes_to_the_tokenizers_decoding(tmp_path: Path, shared_data: Path) -> None:
    path = shared_data / "tokenizers" / "bert-base-cased"
    articles = []
    for article in read_documents(find_files([shared_data / "wikipedia" / "articles-2015"])):
        articles.append(article)
        if len(articles) == 60:
            break
    ids, texts = [article.id for article in articles], [article.text for article in articles]
    pq.write_table(pa.table({"id": ids, "text": texts}), tmp_path / "a.parquet")
    command = ["text", "--input", tmp_path / "a.parquet", "--tokenizer", path, "--output", tmp_path / "s"]
    prep(*command, "--holdout", "0.1")
    assert TokenShards(tmp_path / "s").document(0).dtype == np.uint16
    assert_equal_to_the_tokenizer(tmp_path / "s", ids, texts, load_tokenizer(path), 0.1)


# FORMAT.md


def code_blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", FORMAT.read_text("utf-8"), flags=re.DOTALL)


def test_format_document_reads_shards_with_numpy_alone(small_shards: Path) -> None:
    (recipe,) = code_blocks("python")
    assert set(re.findall(r"^(?:import|from) (\w+)", recipe, flags=re.MULTILINE)) == {"json", "pathlib", "numpy"}
    names: dict = {}
    exec(recipe, names)
    for split in SPLITS:
        shards = TokenShards(small_shards, split)
        found = list(names["read_documents"](small_shards, split))
        assert len(found) == len(shards)
        assert all(np.array_equal(ids, shards.document(i)) for i, ids in enumerate(found))


def test_format_document_shows_a_real_manifest() -> None:
    (manifest,) = code_blocks("json")
    assert parse_manifest(manifest.encode("ascii"), FORMAT).to_bytes() == manifest.encode("ascii")


def test_format_document_shows_the_manifest_of_the_test_corpus(shared_data: Path) -> None:
    manifest = json.loads(code_blocks("json")[0])
    files = find_files([shared_data / "wikipedia" / "articles-2015"])
    assert manifest["sources"] == [file.manifest_entry() for file in files]
    tokenizer = load_tokenizer(shared_data / "tokenizers" / "bert-base-cased")
    assert manifest["tokenizer"]["hash"] == tokenizer_hash(tokenizer)


def test_format_document_explains_every_field() -> None:
    text = FORMAT.read_text("utf-8")
    table = text[text.index("| field | meaning |") : text.index("There is no time, host")]
    records = [shard_manifest.Manifest, shard_manifest.ManifestTokenizer, shard_manifest.ManifestSource]
    records += [shard_manifest.ManifestShard, shard_manifest.ManifestHoldout, shard_manifest.ManifestTotals]
    for record in records:
        for field in record.model_fields:
            assert re.search(rf"`(tokenizer\.)?{field}[`.]", table), field
