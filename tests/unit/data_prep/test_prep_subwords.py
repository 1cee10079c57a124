"""Shards and vocabularies of byte-level BPE and SentencePiece tokenizers."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from bnb_ds.common.randomness import hash64
from bnb_ds.data.corruption import Corruption
from bnb_ds.data.samples import PretrainSamples
from bnb_ds.data.subwords.rules import piece_rules
from bnb_ds.data.tokenization import load_tokenizer, plain_backend, save_tokenizer, special_ids, tokenizer_hash
from bnb_ds.errors import ConfigError, DataError
from bnb_ds.model.target_rules import BnbTargetRules
from bnb_ds.shards.mixed import MixedShards
from bnb_ds.shards.reader import TokenShards
from data_prep.sources.documents import Document
from data_prep.tokenise.engines import InPieces, candidates
from data_prep.tokenise.subword_vocab import train_subwords
from data_prep.tools.verify import find_damage
from tests.prep_helpers import prep, write_corpus
from tests.subwords import OTHERS, byte_level, texts, unigram
from tests.tiny import bnb_config

HOSTILE = ["</s> <mask> x", "a\x00b\u3000c", *OTHERS[:1]]
LARGE = 70_000


def large_vocabulary(path: Path):
    """The small Unigram tokenizer behind 70,000 pieces of its vocabulary that no text holds."""
    state = json.loads(unigram().backend_tokenizer.to_str())
    vocabulary = state["model"]["vocab"]
    state["model"]["vocab"] = [*vocabulary[:5], *([f"\ue000{i}", -20.0] for i in range(LARGE)), *vocabulary[5:]]
    path.mkdir()
    Tokenizer.from_str(json.dumps(state)).save(str(path / "tokenizer.json"))
    return load_tokenizer(path)


def made(tokenizer, path: Path, documents: list[str]) -> Path:
    save_tokenizer(tokenizer, path / "tokenizer")
    corpus = write_corpus(path / "corpus", documents, 3)
    flags = ("--tokenizer", path / "tokenizer", "--output", path / "s", "--holdout", "0.2")
    prep("text", "--input", corpus, *flags)
    return path / "s"


@pytest.mark.parametrize("kind", [byte_level, unigram])
def test_shards_hold_the_tokenizers_own_ids(kind, tmp_path, capsys):
    tokenizer, documents = kind(), [*texts()[:30], *HOSTILE]
    directory = made(tokenizer, tmp_path, documents)
    assert "not used" not in capsys.readouterr().err
    found = []
    for split in ("train", "heldout"):
        shards = TokenShards(directory, split, verify_hashes=True)
        found += [shards.document(i).tolist() for i in range(len(shards))]
    assert [engine.name for engine in shards.manifest.engines] == ["words"]
    assert shards.special_ids == special_ids(tokenizer)
    assert tokenizer_hash(load_tokenizer(shards.tokenizer_dir)) == shards.tokenizer_hash
    expected = [plain_backend(tokenizer).encode(text, add_special_tokens=False).ids for text in documents]
    assert sorted(found) == sorted(expected)
    assert find_damage(directory) == []


def test_ids_beyond_sixteen_bits(tmp_path):
    """From text to batches: nothing on the way takes an id for a 16-bit number."""
    tokenizer = large_vocabulary(tmp_path / "large")
    directories = [made(tokenizer, tmp_path / "a", texts()[:40]), made(tokenizer, tmp_path / "b", texts()[:20])]
    shards = TokenShards(directories[0], "train", verify_hashes=True)
    assert (shards.manifest.dtype, shards.token_dtype) == ("uint32", np.dtype("<u4"))
    assert find_damage(directories[0]) == []
    ids = shards.document(0)
    assert ids.max() > 2**16
    assert tokenizer.decode(ids) in texts()[:40]
    starts = piece_rules(tokenizer, shards.vocab_size).starts
    noise = Corruption(0.3, 0.5, shards.special_ids["mask"], shards.vocab_size, {"mlm": 1, "infill": 1}, (3,), starts)
    for corpus in (shards, MixedShards({str(name): 1 for name in directories}, "train")):
        samples = PretrainSamples(
            corpus,
            sequence="truncate",
            max_length=64,
            corruption=noise,
            seed=1,
            rules=BnbTargetRules(bnb_config()),
        )
        batch = samples.batch(np.arange(8), np.zeros(8, np.int64))
        assert batch.labels.max() > 2**16
        original, _ = samples.original(np.arange(8))
        assert original.max() > 2**16
        assert set(batch.input_ids.tolist()) <= {*original.tolist(), 4, *range(shards.vocab_size)}
        is_masked = batch.masked_labels.numpy() > 2**16
        assert is_masked.any()


@pytest.mark.parametrize("kind", [byte_level, unigram])
def test_words_are_masked_whole(kind):
    tokenizer = kind()
    rules = piece_rules(tokenizer)
    ids = [0, *plain_backend(tokenizer).encode(" ".join(texts()[:20]), add_special_tokens=False).ids, 2]
    tokens, cu_seqlens = np.array(ids), np.array([0, len(ids)])
    noise = Corruption(0.3, 0.0, 4, len(tokenizer), {"mlm": 1}, (3,), rules.starts)
    chosen = np.zeros(len(ids), dtype=bool)
    chosen[noise(tokens, cu_seqlens, hash64(1, np.array([0]))).chosen] = True
    begins = rules.starts(tokens)
    begins[:2] = begins[-1] = True
    words = np.split(chosen, np.flatnonzero(begins)[1:])
    assert all(word.all() or not word.any() for word in words)
    assert max(map(len, words)) > 2
    assert 0.2 < chosen.mean() < 0.4


def test_a_long_document_is_cut_where_nothing_changes(monkeypatch):
    monkeypatch.setattr("data_prep.tokenise.engines._PIECE_CHARACTERS", 40)
    text = " ".join(texts()[:3]).replace(" the ", "  \n the ") + "x" * 100 + "   y \n z"
    for tokenizer in (byte_level(), unigram()):
        for candidate in candidates(tokenizer, "auto"):
            assert candidate([text]).ids.tolist() == plain_backend(tokenizer).encode(text, add_special_tokens=False).ids
            assert isinstance(candidate._encode, InPieces)


@pytest.mark.parametrize(("kind", "name"), [("bpe", "byte-level BPE"), ("unigram", "Unigram")])
def test_a_vocabulary_is_trained_by_a_command(kind, name, tmp_path, capsys):
    corpus = write_corpus(tmp_path / "corpus", texts()[:40], 2)
    flags = ("--kind", kind, "--vocab-size", "400", "--uncased")
    prep("vocab", "--input", corpus, "--output", tmp_path / "v", *flags)
    assert f"prep vocab: 400 uncased {name} tokens from 2 files" in capsys.readouterr().out
    tokenizer = load_tokenizer(tmp_path / "v")
    assert tokenizer.decode(tokenizer("The Café", add_special_tokens=False)["input_ids"]).replace("<unk>", "") in (
        "the cafe",
        "the caf",
    )
    assert tokenizer.model_max_length > 512
    assert sorted(os.listdir(tmp_path / "v")) == ["tokenizer.json", "tokenizer_config.json"]


def test_one_corpus_gives_one_byte_level_vocabulary(tmp_path):
    documents = [Document(str(i), text, "") for i, text in enumerate(texts()[:40])]
    made = [train_subwords(documents, tmp_path / name, kind="bpe", vocab_size=400) for name in "ab"]
    assert tokenizer_hash(made[0]) == tokenizer_hash(made[1])
    # A learnt piece shortens text; the ids of bytes are fixed.
    assert len(made[0](texts()[0])["input_ids"]) < 0.7 * len(texts()[0])


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_vocabularies_that_cannot_be_trained(kind, tmp_path):
    documents = [Document("0", "abc def. über", ""), Document("1", " \n", "")]
    with pytest.raises(ConfigError, match=r"--vocab-size 9 is too small for .*; use at least (\d+)") as error:
        train_subwords(documents, tmp_path / "v", kind=kind, vocab_size=9)
    least = int(str(error.value).rsplit(" ", 1)[1])
    assert len(train_subwords(documents, tmp_path / "v", kind=kind, vocab_size=least)) <= least
    with pytest.raises(DataError, match="the corpus holds no words to train a vocabulary on; choose another --input"):
        train_subwords(documents[1:], tmp_path / "w", kind=kind, vocab_size=400)
    assert os.listdir(tmp_path) == ["v"]
