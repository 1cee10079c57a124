"""``bnb-ds bench floors``: what a translation model must beat, copying the source and translating word for word.

The dictionary is IBM model 1 (Brown et al., 1993) after a few rounds of expectation maximisation: each source word
becomes its most probable target word, in the source's order.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

from bnb_ds.common.arguments import positive
from bnb_ds.errors import DataError
from bnb_ds.tasks.rows import read_parallel

_SMALLEST = 1e-4  # probabilities below it are dropped, which keeps the table small

Pairs = list[tuple[list[str], list[str]]]


def measure(train: tuple[Path, Path], test: tuple[Path, Path], rounds: int) -> dict[str, float]:
    """BLEU of both on the test pair of files; cased, on words split by sacreBLEU's own tokenizer for the dictionary.

    Raises:
        DataError: files cannot be read, have different numbers of lines, or are empty.
    """
    # Not at the top: every command of bnb-ds imports this module for its flags.
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
                # In the first round every pair of words is as likely as any other.
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
            raise DataError(f"{place}: is empty; remove it from both files")
        rows.append(row)
    if not rows:
        raise DataError(f"{files[0]}: holds no lines; give parallel files")
    return rows


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bench floors``."""
    for name in ("train", "test"):
        command.add_argument(f"--{name}", type=Path, nargs=2, required=True, metavar=("SOURCE", "TARGET"))
    command.add_argument("--rounds", type=positive, default=5, help="of the dictionary's EM (default %(default)s)")
    command.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    for name, score in measure(tuple(args.train), tuple(args.test), args.rounds).items():
        print(f"{name:15} BLEU {score:.2f}")
