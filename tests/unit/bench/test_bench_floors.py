"""``bnb-ds bench floors``: scores of trivial systems."""

from __future__ import annotations

import json
import shutil

import pytest

from bnb_ds.bench.floors import dictionary, first_sentence, measure, measure_task
from bnb_ds.cli import main
from bnb_ds.errors import DataError
from bnb_ds.evaluate.scoring import score_texts
from bnb_ds.tasks.codec import Codec
from tests.exports import save_model, save_task_model

PAIRS = [("the house", "das Haus"), ("the book", "das Buch"), ("a book", "ein Buch"), ("a house .", "ein Haus .")]


def test_the_dictionary_finds_what_goes_together():
    pairs = [(source.split(), target.split()) for source, target in PAIRS]
    found = dictionary(pairs, 20)
    assert {word: found[word] for word in ("the", "a", "house", "book")} == {
        "the": "das",
        "a": "ein",
        "house": "Haus",
        "book": "Buch",
    }


def test_scores_are_printed_and_bad_files_told(tmp_path, capsys):
    source, target = tmp_path / "s", tmp_path / "t"
    source.write_text("".join(f"{s} and so on {s}\n" for s, _ in PAIRS))
    target.write_text("".join(f"{t} und so weiter {t}\n" for _, t in PAIRS))
    files = [str(source), str(target)]
    assert main(["bench", "floors", "--train", *files, "--test", *files]) == 0
    copied, word_for_word = capsys.readouterr().out.splitlines()
    assert copied.startswith("copied source   BLEU")
    assert float(word_for_word.split()[-1]) > 20 > float(copied.split()[-1])
    source.write_text("")
    with pytest.raises(DataError, match="has only 0 lines"):
        measure((source, target), (source, target), 1)


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("", "", "source: holds no lines; give parallel files"),
        ("a\n \n", "b\nc\n", "source and .*target: line 2: is empty; remove the line from both files"),
        ("a\n", "\n", "source and .*target: line 1: is empty; remove the line from both files"),
    ],
)
def test_what_gives_no_dictionary(tmp_path, source, target, message):
    files = (tmp_path / "source", tmp_path / "target")
    for path, text in zip(files, (source, target), strict=True):
        path.write_text(text)
    with pytest.raises(DataError, match=message):
        measure(files, files, 1)


ARTICLES = ["One goes. Two went, and Dr. No stayed.", "Nobody knows! But why", "no end at all"]
SUMMARIES = ["One goes home", "Somebody knows", "an end"]


@pytest.mark.parametrize(
    ("text", "first"),
    [
        (ARTICLES[0], "One goes."),
        (" Is it e.g. this? It is. ", "Is it e.g. this?"),
        ('He said "no." Then he left.', 'He said "no."'),
        ("3.5 is a number. So is 4.", "3.5 is a number."),
        ("A title\nand a text.", "A title"),
        ("\u4e00\u3002\u4e8c\u3002", "\u4e00\u3002"),
        ("no end at all", "no end at all"),
        ("", ""),
    ],
)
def test_the_first_sentence(text, first):
    assert first_sentence(text) == first


@pytest.fixture(scope="module")
def models(small_tokenizer, tmp_path_factory):
    """Directories of models for two tasks, and rows of articles and summaries."""
    folder = tmp_path_factory.mktemp("floors")
    save_model(folder / "summarization", small_tokenizer)
    shutil.copytree(folder / "summarization", folder / "sst2")
    for name in ("summarization", "sst2"):
        made_for = {"kind": "bnb", "task": name, "lengths": {"source": 20, "target": 20}}
        (folder / name / "task.json").write_text(json.dumps(made_for))
    rows = [{"document": d, "summary": s} for d, s in zip(ARTICLES, SUMMARIES, strict=True)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_the_floors_of_a_task(models, capsys):
    rows = f"data.validation={models / 'rows.jsonl'}"
    assert main(["bench", "floors", str(models / "summarization"), "--set", rows]) == 0
    head, _, copied, first = (line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines())
    assert head[:4] == ["floor", "rouge1", "rouge2", "rougeL"]
    for name, outputs, cells in (
        ("copied source", ARTICLES, copied),
        ("first sentence", ["One goes.", "Nobody knows!", "no end at all"], first),
    ):
        rouge = score_texts(["rouge"], outputs, SUMMARIES).values
        assert cells[:4] == [name, *(f"{rouge[score]:.2f}" for score in head[1:4])]


@pytest.mark.parametrize(("references", "exact"), [(None, False), ("comma", True), ("plain", True)])
def test_texts_are_spelled_and_joined_as_evaluations_do(tmp_path, small_tokenizer, references, exact):
    """The source has the reference's words, in the other spelling and on two lines that a hyphen would join."""
    model = save_task_model(tmp_path / "model", "wmt16_en_ro", Codec(small_tokenizer, small_tokenizer))
    row = {"en": "\u015etiin\u0163\u0103-\nun \u015fi doi", "ro": "\u0218tiin\u021b\u0103- un \u0219i doi"}
    (tmp_path / "rows.jsonl").write_text(json.dumps({"translation": row}) + "\n")
    settings = [f"data.validation={tmp_path / 'rows.jsonl'}"]
    settings += [f"data.romanian.references={references}"] if references else []
    assert (measure_task(model, None, settings)["copied source"]["bleu"] == pytest.approx(100)) is exact


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{models}/sst2"], "sst2: is a model for sst2, whose outputs are no texts; give one that writes"),
        ([], "bnb-ds bench floors: give either a model, or the parallel files --train and --test"),
        (["m", "--test", "a", "b"], "bnb-ds bench floors: give either a model, or the parallel files --train and"),
        (["--train", "a", "b"], "bnb-ds bench floors: give either a model, or the parallel files --train and --test"),
    ],
)
def test_what_has_no_floors(models, capsys, arguments, message):
    assert main(["bench", "floors", *(argument.format(models=models) for argument in arguments)]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
