"""``bnb-ds bench ceilings``: the BLEU and ROUGE of a model that makes no mistake.

References are tokenised, decoded and compared with themselves in three ways:

  plain    words joined as the tokenizer joins them
  learnt   spaces as learnt from training targets (``data.target_spacing: learnt``)
  pieces   spaces kept by the ids (``data.target_spacing: pieces``)
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bnb_ds.common.arguments import describe
from bnb_ds.errors import DataError

WAYS = ("plain", "learnt", "pieces")
_LONGEST = 1 << 20  # tokens: nothing is cut here


@dataclass(frozen=True)
class Ceiling:
    """What a perfect model would reach.

    Attributes:
        bleu, rouge: sacreBLEU, cased unless the tokenizer lowercases; ROUGE-L.
        exact: share of texts that come back letter by letter.
        tokens, unknown: number of tokens of all texts, and of [UNK] among them.
    """

    bleu: float
    rouge: float
    exact: float
    tokens: int
    unknown: int


def measure(tokenizer: Path, texts: Sequence[str], train: Sequence[str], way: str) -> Ceiling:
    """The ceiling of some texts.

    Args:
        tokenizer: directory or vocabulary file of a BERT tokenizer.
        texts: references.
        train: texts to learn spaces from; none: each half of ``texts`` learns from the other half.
        way: see `WAYS`.
    """
    from bnb_ds.data.tokenization import load_tokenizer
    from bnb_ds.evaluate.scoring import score_texts
    from bnb_ds.tasks.codec import Codec
    from bnb_ds.tasks.spacing import Sample, Spacing

    loaded = load_tokenizer(tokenizer)
    middle = len(texts) // 2
    halves = [(texts[:middle], texts[middle:]), (texts[middle:], texts[:middle])]
    parts = [(texts, train)] if train else halves
    outputs: list[str] = []
    tokens = unknown = 0
    for part, learnt_from in parts:
        spacing = None
        if way != "plain":
            sample = Sample()
            sample.add(learnt_from)
            spacing = Spacing.learn(loaded, sample.texts, exact=way == "pieces")
        codec = Codec(loaded, loaded, spacing)
        ids, _ = codec.encode_targets(part, _LONGEST)
        outputs += codec.decode(ids)
        tokens += sum(row.size for row in ids)
        unknown += sum(int((row == loaded.unk_token_id).sum()) for row in ids)
    references = [" ".join(text.split()) for text in texts]
    values = score_texts(("sacrebleu", "rouge"), outputs, references, lowercase=codec.lowercases).values
    exact = sum(output == reference for output, reference in zip(outputs, references, strict=True)) / len(texts)
    return Ceiling(values["bleu"], values["rougeL"], exact, tokens, unknown)


def read_texts(path: Path, column: str | None) -> list[str]:
    """The texts of a file: its lines, or with ``column`` that column of its rows; ``question`` of SQuAD's JSON.

    Raises:
        DataError: the file cannot be read, lacks the column, or holds no text.
    """
    from bnb_ds.tasks.rows import read_file, read_text_lines, suffix_of

    texts = []
    if column is None:
        texts = [line for _, line in read_text_lines(path)]
    else:
        for place, row in read_file(path, form="squad" if suffix_of(path) == ".json" else "rows"):
            if isinstance(row, DataError):
                raise row
            if not isinstance(row.get(column), str):
                raise DataError(f"{place}: has no text in column {column!r}; give --column")
            texts.append(row[column])
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise DataError(f"{path}: holds no texts; give references, one a line or in a --column")
    return texts


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bench ceilings``."""
    describe(
        command,
        "Score references that were tokenised and decoded again: no model can score higher with that tokenizer.",
        "bnb-ds bench ceilings references.txt --tokenizer work/models/bert",
    )
    command.add_argument("references", type=Path, help="texts, one a line, or rows with --column")
    command.add_argument("--tokenizer", type=Path, required=True, help="BERT directory or vocab.txt")
    command.add_argument("--column", help="of csv, tsv, jsonl, parquet, or of SQuAD's JSON: question")
    command.add_argument(
        "--train", type=Path, nargs="+", default=[], help="learn spaces there (default: each half from the other)"
    )
    command.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    texts = read_texts(args.references, args.column)
    train = [text for path in args.train for text in read_texts(path, args.column)]
    print(f"{args.references.name}, {args.tokenizer.name}: {len(texts):,} texts")
    print(f"  spaces learnt from {', '.join(path.name for path in args.train) or 'the other half of the texts'}")
    for way in WAYS:
        found = measure(args.tokenizer, texts, train, way)
        print(
            f"  {way:7} BLEU {found.bleu:6.2f}  ROUGE-L {found.rouge:6.2f}  exact {100 * found.exact:5.1f}%"
            f"  {found.tokens:,} tokens, {found.unknown:,} [UNK]",
            flush=True,
        )
