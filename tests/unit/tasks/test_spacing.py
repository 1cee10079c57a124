"""Outputs read as people write: spaces are restored, from what was learnt or from the ids themselves."""

from __future__ import annotations

import json

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from bnb_ds.bench.ceilings import measure, read_texts
from bnb_ds.cli import main
from bnb_ds.data.tokenization import tokenizer_from_vocabulary
from bnb_ds.errors import CheckpointError, ConfigError
from bnb_ds.generate.pipeline import BnbPipeline
from bnb_ds.systems.bnb import BnbGenerator
from bnb_ds.tasks.codec import Codec
from bnb_ds.tasks.spacing import SPACING_FILE, Sample, Spacing, learns_spacing
from tests.exports import save_model

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
MARKS = ".,:;!?'\"()-/%$#"
TEXTS = [
    "Brazil's Former Chief-of-Staff to Stand Trial",
    'He said: "It costs $35,000 (about 3.5%)."',
    "The boys' toys weren't lost, were they?",
    "It's 10:30, isn't it?",
]


@pytest.fixture(scope="module")
def tokenizer():
    """One piece for each letter and mark, at the beginning of a word and within it; no ``@`` and no ``\u2019``."""
    pieces = [piece for sign in LETTERS + MARKS for piece in (sign, f"##{sign}")]
    return tokenizer_from_vocabulary(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *pieces], lowercase=False)


def round_trip(tokenizer, spacing, texts) -> list[str]:
    codec = Codec(tokenizer, tokenizer, spacing)
    return codec.decode(codec.encode_targets(texts, 1000)[0])


def test_without_spacing_the_tokenizer_joins_as_before(tokenizer):
    assert round_trip(tokenizer, None, TEXTS[:1]) == ["Brazil ' s Former Chief - of - Staff to Stand Trial"]


def test_the_rules_of_typography_alone(tokenizer):
    assert round_trip(tokenizer, Spacing.learn(tokenizer, []), TEXTS) == TEXTS


def test_training_targets_decide_against_the_rules(tokenizer):
    """Every comma has a space on both sides; in the second corpus marks of another kind have none."""
    tokenised = ["one , two - three : four", "five , six - seven : eight", "it 's a dog ."]
    unseen = ["nine , ten - six : two"]
    assert round_trip(tokenizer, Spacing.learn(tokenizer, tokenised[:2] * 20), unseen) == unseen
    both = Spacing.learn(tokenizer, [*tokenised, "three(four)five"] * 20)
    assert round_trip(tokenizer, both, [*unseen, "nine(ten)two", "it 's a cat ."]) == [
        *unseen,
        "nine(ten)two",
        "it 's a cat .",
    ]


@pytest.mark.parametrize("exact", [False, True])
def test_an_unknown_sign_becomes_what_it_was_in_training(tokenizer, exact):
    texts = ["a @ b", "see @ home"] * 5 + TEXTS
    learnt = Spacing.learn(tokenizer, texts, exact=exact)
    assert round_trip(tokenizer, learnt, ["look @ me"]) == ["look @ me"]
    assert round_trip(tokenizer, Spacing.learn(tokenizer, TEXTS, exact=exact), ["look @ me"]) == ["look me"]


def test_pieces_keep_any_spaces(tokenizer):
    odd = ["a - b-c -d e- f", "x , y ,z", 'say " hi "now', "10 %, 3. 5", "''s 's' s '"]
    spacing = Spacing.learn(tokenizer, [], exact=True)
    assert round_trip(tokenizer, spacing, odd + TEXTS) == odd + TEXTS
    assert round_trip(tokenizer, Spacing.learn(tokenizer, TEXTS), odd) != odd
    codec = Codec(tokenizer, tokenizer, spacing)
    (ids,), _ = codec.encode_targets(["it's"], 99)
    assert tokenizer.convert_ids_to_tokens(ids.tolist()) == ["[CLS]", "i", "##t", "##'", "##s", "[SEP]"]
    (literal,), _ = codec.encode_targets(["(SEP) [SEP]"], 99)
    assert np.count_nonzero(literal == tokenizer.sep_token_id) == 1


def test_the_same_texts_give_the_same_file(tokenizer, tmp_path):
    for name in ("a", "b"):
        Spacing.learn(tokenizer, TEXTS * 5).save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    loaded = Spacing.load(tmp_path / "a")
    assert round_trip(tokenizer, loaded, TEXTS) == TEXTS
    assert not loaded.exact


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"format": 9}', '{"format": 1, "weights": [3]}'])
def test_a_file_that_is_no_spacing(tmp_path, content):
    path = tmp_path / SPACING_FILE
    path.write_text(content)
    with pytest.raises(CheckpointError, match=r"spacing\.json: cannot be read as spacing \(.*\); restore it"):
        Spacing.load(path)


def test_a_model_directory_keeps_its_spacing(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    assert BnbGenerator.load_codec(tmp_path).spacing is None, "an older model decodes as before"
    plain = Codec(tokenizer, tokenizer)
    plain.use_exact_targets()
    assert plain.fingerprint != Codec(tokenizer, tokenizer).fingerprint
    Codec(tokenizer, tokenizer, Spacing.learn(tokenizer, TEXTS, exact=True)).save(tmp_path)
    loaded = BnbGenerator.load_codec(tmp_path)
    assert loaded.exact_targets
    assert loaded.fingerprint == plain.fingerprint
    assert loaded.decode(loaded.encode_targets(["a -b- c"], 99)[0]) == ["a -b- c"]


def test_the_pipeline_writes_as_the_codec_does(small_tokenizer, small_texts, tmp_path):
    directory = save_model(tmp_path / "model", small_tokenizer)
    before = BnbPipeline.from_pretrained(directory, device="cpu").generate(small_texts[:8])
    spacing = Spacing.learn(small_tokenizer, small_texts)
    spacing.save(directory / SPACING_FILE)
    after = BnbPipeline.from_pretrained(directory, device="cpu").generate(small_texts[:8])
    assert [output.tokens for output in after] == [output.tokens for output in before]
    codec = Codec(small_tokenizer, small_tokenizer, spacing)
    assert [output.text for output in after] == codec.decode([np.array(output.tokens) for output in before])
    assert [output.text for output in after] != [output.text for output in before]


def test_real_english_is_restored_better_than_by_the_tokenizer(small_tokenizer, small_texts):
    train, held_out = small_texts[:200], small_texts[200:]

    def wrong(spacing):
        outputs = round_trip(small_tokenizer, spacing, held_out)
        return sum(output.count(" ") != text.count(" ") for output, text in zip(outputs, held_out, strict=True))

    found = [wrong(Spacing.learn(small_tokenizer, train, exact=exact)) for exact in (True, False)]
    print(found, wrong(None), len(held_out))
    assert max(found) < wrong(None) / 2


def test_what_needs_spacing(tokenizer):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    assert learns_spacing(tokenizer)
    backend = Tokenizer(models.BPE(vocab={"a": 0, "<s>": 1}, merges=[]))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    of_bytes = PreTrainedTokenizerFast(tokenizer_object=backend)
    assert not learns_spacing(of_bytes)
    with pytest.raises(ConfigError, match=r"data\.target_spacing pieces: needs a BERT WordPiece tokenizer"):
        Codec(of_bytes, of_bytes).use_exact_targets()


def test_a_sample_is_drawn_from_the_whole_stream(monkeypatch):
    monkeypatch.setattr("bnb_ds.tasks.spacing.MOST_TARGETS", 50)
    samples = [Sample(), Sample()]
    for sample in samples:
        sample.add(str(i) for i in range(1000))
    assert samples[0].texts == samples[1].texts
    assert len(set(samples[0].texts)) == 50
    assert 300 < np.mean([int(text) for text in samples[0].texts]) < 700


def test_the_command_prints_ceilings(small_tokenizer, small_texts, tmp_path, capsys):
    small_tokenizer.save_pretrained(tmp_path / "tokenizer")
    texts = tmp_path / "texts.txt"
    texts.write_text("".join(f"{text}\n" for text in small_texts[:60]))
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"summary": text}) + "\n" for text in small_texts[60:90]))
    assert main(["bench", "ceilings", str(texts), "--tokenizer", str(tmp_path / "tokenizer")]) == 0
    plain, learnt, pieces = (float(line.split()[2]) for line in capsys.readouterr().out.splitlines()[2:])
    assert plain < min(learnt, pieces)
    assert len(read_texts(rows, "summary")) == 30
    for arguments, message in (
        (["--column", "question"], "line 1: has no text in column 'question'; give --column"),
        ([], "rows.jsonl: holds no texts; give references"),
    ):
        if not arguments:
            rows.write_text("\n")
        assert main(["bench", "ceilings", str(rows), "--tokenizer", str(tmp_path / "tokenizer"), *arguments]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "column", "tokenizer_name"),
    [
        ("squad/dev-v1.1.json.gz", "question", "bert-base-cased"),
        ("translation/wmt_enro/newsdev2016.ro.gz", None, "bert-base-multilingual-cased"),
        ("translation/wmt_enro/newsdev2016.en.gz", None, "bert-base-cased"),
        ("translation/wmt_ende/newstest2013.de.gz", None, "bert-base-multilingual-cased"),
        ("translation/multi30k/test_2016_flickr.de.gz", None, "bert-base-multilingual-cased"),
    ],
)
def test_the_ceiling_of_real_references(shared_data, name, column, tokenizer_name):
    texts = read_texts(shared_data / name, column)[-400:]
    directory = shared_data / "tokenizers" / tokenizer_name
    plain, pieces = (measure(directory, texts, [], way).bleu for way in ("plain", "pieces"))
    assert plain < 98
    assert pieces > 99.5
