"""What a translation model must beat."""

from __future__ import annotations

import pytest

from bnb_ds.bench.floors import dictionary, measure
from bnb_ds.cli import main
from bnb_ds.errors import DataError

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
        ("a\n \n", "b\nc\n", "source and .*target: line 2: is empty; remove it from both files"),
        ("a\n", "\n", "source and .*target: line 1: is empty; remove it from both files"),
    ],
)
def test_what_gives_no_dictionary(tmp_path, source, target, message):
    files = (tmp_path / "source", tmp_path / "target")
    for path, text in zip(files, (source, target), strict=True):
        path.write_text(text)
    with pytest.raises(DataError, match=message):
        measure(files, files, 1)
