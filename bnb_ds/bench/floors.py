"""``bnb-ds bench floors``: BLEU of two trivial translations, as lower bounds for a translation model.

One copies the source. The other replaces each source word by its most probable target word. Its dictionary is IBM model
1 (Brown et al., 1993) after a few rounds of expectation maximisation.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

from bnb_ds.common.arguments import describe, positive
from bnb_ds.errors import DataError
from bnb_ds.tasks.rows import read_parallel

_SMALLEST = 1e-4  # smaller probabilities are dropped, which keeps the table small

Pairs = list[tuple[list[str], list[str]]]


def measure(train: tuple[Path, Path], test: tuple[Path, Path], rounds: int) -> dict[str, float]:
    """Compute cased BLEU of both translations of the test files. sacreBLEU's tokenizer splits words for the dictionary.

    Raises:
        DataError: the files cannot be read, differ in their numbers of lines, or have empty lines.
    """
    # Imported here, so that --help is quick.
    import sacrebleu
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    tokenize = Tokenizer13a()
    pairs = [(tokenize(row["source"]).split(), tokenize(row["target"]).split()) for row in _rows(train)]
    rows = _rows(test)
    best = dictionary(pairs, rounds)
    references = [row["target"] for row in rows]
    translated = [" ".join(best.get(word, word) for word in tokenize(row["source"]).split()) for row in rows]
    copied = [row["source"] for row in rows]
    return {
        "copied source": sacrebleu.corpus_bleu(copied, [references], force=True).score,
        "word for word": sacrebleu.corpus_bleu(translated, [references], force=True).score,
    }


def dictionary(pairs: Pairs, rounds: int) -> dict[str, str]:
    """The most probable target word of each source word."""
    table: dict[str, dict[str, float]] = {}
    for number in range(rounds):
        counts: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        for source, target in pairs:
            for word in target:
                # In the first round all pairs of words are equally likely.
                shares = [table[other].get(word, 0.0) if number else 1.0 for other in source]
                total = sum(shares)
                if total > 0:
                    for other, share in zip(source, shares, strict=True):
                        counts[other][word] += share / total
        table = {}
        for other, by_word in counts.items():
            total = sum(by_word.values())
            table[other] = {word: count / total for word, count in by_word.items() if count > _SMALLEST * total}
    return {other: max(by_word, key=lambda word: (by_word[word], word)) for other, by_word in table.items() if by_word}


def _rows(files: tuple[Path, Path]) -> list[dict[str, str]]:
    rows = []
    for place, row in read_parallel(*files):
        if isinstance(row, DataError):
            raise row
        if not row["source"].strip() or not row["target"].strip():
            raise DataError(f"{place}: is empty; remove the line from both files")
        rows.append(row)
    if not rows:
        raise DataError(f"{files[0]}: holds no lines; give parallel files")
    return rows


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bench floors``."""
    describe(
        command,
        "Compute BLEU of copying the source and of word-for-word translation, which a translation model must beat.",
        "bnb-ds bench floors --train train.en train.de --test test.en test.de",
    )
    for name, purpose in (
        ("train", "parallel files to learn the dictionary from"),
        ("test", "parallel files to score"),
    ):
        command.add_argument(f"--{name}", type=Path, nargs=2, required=True, metavar=("SOURCE", "TARGET"), help=purpose)
    command.add_argument(
        "--rounds",
        type=positive,
        default=5,
        help="rounds of expectation maximisation for the dictionary (default %(default)s)",
    )
    command.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    for name, score in measure(tuple(args.train), tuple(args.test), args.rounds).items():
        print(f"{name:15} BLEU {score:.2f}")
