"""Documents into shards, and the documentation of the format."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

import data_prep
from bnb_ds.data.tokenization import load_tokenizer, tokenizer_hash
from bnb_ds.errors import ConfigError, DataError
from bnb_ds.shards import manifest as shard_manifest
from bnb_ds.shards.manifest import SPLITS, parse_manifest
from bnb_ds.shards.reader import TokenShards
from data_prep.sources.documents import Document, is_held_out
from data_prep.sources.text import find_files, read_documents
from tests.shard_building import build_shards

FORMAT = Path(data_prep.__file__).with_name("FORMAT.md")


def documents(texts: list[str]) -> list[Document]:
    return [Document(str(i), text, "corpus") for i, text in enumerate(texts)]


def test_shards_hold_the_tokenizers_own_encoding(small_shards: Path, small_texts: list[str], small_tokenizer) -> None:
    ids = [str(i) for i in range(len(small_texts))]
    expected = dict(zip(ids, small_tokenizer(small_texts, add_special_tokens=False)["input_ids"], strict=True))
    for split in SPLITS:
        shards = TokenShards(small_shards, split, verify_hashes=True)
        of_split = [document_id for document_id in ids if is_held_out(document_id, 0.1) == (split == "heldout")]
        assert len(shards) == len(of_split) > 10
        for i, document_id in enumerate(of_split):
            assert shards.document(i).tolist() == expected[document_id]
    train = TokenShards(small_shards)
    assert len([shard for shard in train.manifest.shards if shard.split == "train"]) > 1
    assert (
        tokenizer_hash(load_tokenizer(train.tokenizer_dir)) == train.tokenizer_hash == tokenizer_hash(small_tokenizer)
    )
    assert train.manifest.holdout.fraction == 0.1


def test_output_does_not_depend_on_batching(
    tmp_path: Path, small_shards: Path, small_texts: list[str], small_tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_prep.sources.documents._BATCH_DOCUMENTS", 7)
    monkeypatch.setattr("tests.shard_building._BATCH_CHARACTERS", 3000)
    build_shards(
        documents(small_texts), tmp_path / "s", small_tokenizer, sources=[], holdout=0.1, tokens_per_shard=10_000
    )
    for path in (path for path in small_shards.rglob("*") if path.is_file()):
        assert (tmp_path / "s" / path.relative_to(small_shards)).read_bytes() == path.read_bytes()


def test_empty_documents_are_counted(tmp_path: Path, small_tokenizer) -> None:
    texts = ["", "a function", " \n\t", "\x00", "another function"]
    manifest = build_shards(documents(texts), tmp_path / "s", small_tokenizer, sources=[], holdout=0.0)
    assert manifest.totals.skipped == {"empty": 3}
    assert manifest.totals.documents == {"train": 2, "heldout": 0}


def test_mask_in_a_text_is_text(tmp_path: Path, small_tokenizer) -> None:
    text = "The [MASK] token and the [PAD] token."
    build_shards(documents([text]), tmp_path / "s", small_tokenizer, sources=[], holdout=0.0)
    shards = TokenShards(tmp_path / "s")
    specials = {index for name, index in shards.special_ids.items() if name != "unk"}
    assert not specials & set(shards.document(0).tolist())


@pytest.mark.parametrize("holdout", [-0.1, 1.0, float("nan")])
def test_holdout_out_of_range(tmp_path: Path, small_tokenizer, holdout: float) -> None:
    with pytest.raises(ConfigError, match=f"--holdout must be at least 0 and below 1, got {holdout}"):
        build_shards(documents(["x"]), tmp_path / "s", small_tokenizer, sources=[], holdout=holdout)
    assert not (tmp_path / "s").exists()


def test_tokens_per_shard_out_of_range(tmp_path: Path, small_tokenizer) -> None:
    with pytest.raises(ConfigError, match="--tokens-per-shard must be at least 1, got 0"):
        build_shards(documents(["x"]), tmp_path / "s", small_tokenizer, sources=[], tokens_per_shard=0)


@pytest.mark.parametrize(("texts", "count"), [([], 0), (["", " "], 2)])
def test_corpus_without_text(tmp_path: Path, small_tokenizer, texts: list[str], count: int) -> None:
    sources = [{"name": name, "bytes": 0, "sha256": ""} for name in ("a.txt", "b.txt", "c.txt", "d.txt")]
    message = rf"a.txt, b.txt, c.txt, ...: no text \({count} empty documents\); choose another --input"
    with pytest.raises(DataError, match=message):
        build_shards(documents(texts), tmp_path / "s", small_tokenizer, sources=sources)
    assert not (tmp_path / "s").exists()


def test_everything_held_out(tmp_path: Path, small_tokenizer) -> None:
    with pytest.raises(DataError, match="corpus: every document was held out; give more documents"):
        build_shards(documents(["x"]), tmp_path / "s", small_tokenizer, sources=[], holdout=0.9999999)
    assert not (tmp_path / "s").exists()


def test_reader_that_fails_leaves_nothing(tmp_path: Path, small_tokenizer) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "fine"}\n' * 5000 + '{"text": 1}\n')
    with pytest.raises(DataError, match=r"a.jsonl: line 5001: the text is of type int"):
        build_shards(read_documents(find_files([path])), tmp_path / "s", small_tokenizer, sources=[])
    assert not (tmp_path / "s").exists()


def test_wikipedia_decodes_to_the_tokenizers_decoding(tmp_path: Path, shared_data: Path) -> None:
    tokenizer = load_tokenizer(shared_data / "tokenizers" / "bert-base-cased")
    articles = []
    for article in read_documents(find_files([shared_data / "wikipedia" / "articles-2015"])):
        articles.append(article)
        if len(articles) == 60:
            break
    build_shards(articles, tmp_path / "s", tokenizer, sources=[], holdout=0.1)
    train, heldout = (TokenShards(tmp_path / "s", split) for split in SPLITS)
    assert train.document(0).dtype == np.uint16
    position = {"train": 0, "heldout": 0}
    for article in articles:
        split = "heldout" if is_held_out(article.id, 0.1) else "train"
        stored = (heldout if split == "heldout" else train).document(position[split])
        position[split] += 1
        expected = tokenizer(article.text, add_special_tokens=False)["input_ids"]
        assert stored.tolist() == expected
        assert tokenizer.decode(stored) == tokenizer.decode(expected)
    assert position == {"train": len(train), "heldout": len(heldout)}


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
