"""``bnb-ds bench floors``: scores of trivial systems, as lower bounds for a model.

For the task of a model, one copies the source, and the other its first sentence. For translation, one more replaces
each source word by its most probable target word. Its dictionary is IBM model 1 (Brown et al., 1993) after a few rounds
of expectation maximisation.
"""

from __future__ import annotations

import argparse
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from bnb_ds.common.arguments import add_overrides, describe, positive
from bnb_ds.common.markdown import markdown_table
from bnb_ds.errors import ConfigError, DataError
from bnb_ds.tasks.rows import read_parallel

_SMALLEST = 1e-4  # smaller probabilities are dropped, which keeps the table small
#: where a sentence ends: behind its mark and closing quotes, if a space and no small letter follow
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]\u201d\u2019]*\s+(?![a-z])|[\u3002\uff01\uff1f]|\n")

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


def measure_task(model: Path, split: str | None, overrides: Sequence[str]) -> dict[str, dict[str, float]]:
    """Score what copies the source, and what copies its first sentence, as `bnb-ds evaluate` scores the model.

    Of a task with several source columns, the last one is copied: the passage, not the answer. Copies and references
    are on one line each, and in the spelling of ``data.romanian.references``.

    Args:
        model: a model directory, or a run.
        split: None: the task's first validation split.
        overrides: ``data.KEY=VALUE``, in place of the data that the model was fine-tuned on.

    Raises:
        CheckpointError, DataError: the model or its data cannot be read.
        ConfigError: the task has no texts to write, or a setting is wrong.
    """
    from bnb_ds.evaluate.scoring import scores_of
    from bnb_ds.evaluate.split import one_line
    from bnb_ds.systems.model_dir import best_model, system_and_data
    from bnb_ds.tasks.examples import read_examples
    from bnb_ds.tasks.romanian import respell

    system, data = system_and_data(best_model(model), None, overrides)
    task = system.task
    if not task.is_generation:
        raise ConfigError(f"{model}: is a model for {task.name}, whose outputs are no texts; give one that writes")
    examples = list(read_examples(task, data, split or task.validation_splits[0]))
    sources = [example.sources[-1] for example in examples]

    def scored(texts: Iterable[str]) -> list[str]:
        return [respell(one_line(text), system.scored_spelling) for text in texts]

    references = scored(str(example.target) for example in examples)
    outputs = {"copied source": scored(sources), "first sentence": scored(map(first_sentence, sources))}
    return {
        name: scores_of(task, texts, references, lowercase=system.codec.lowercases).values
        for name, texts in outputs.items()
    }


def first_sentence(text: str) -> str:
    """The text up to the end of its first sentence; abbreviations before a capital letter end one too."""
    text = text.strip()
    end = _SENTENCE_END.search(text)
    return text if end is None else text[: end.end()].rstrip()


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
        "Score what copies the source or its first sentence on the task of a model, or BLEU of copying and of"
        " word-for-word translation for parallel files. A model must beat them.",
        "bnb-ds bench floors work/runs/xsum --split test",
    )
    command.add_argument("model", type=Path, nargs="?", help="run or model directory, for its task and data")
    command.add_argument("--split", help="with a model: the split (default: the task's first validation split)")
    add_overrides(command, "with a model: replace its data, for example data.test=FILE; repeatable")
    for name, purpose in (
        ("train", "parallel files to learn the dictionary from"),
        ("test", "parallel files to score"),
    ):
        command.add_argument(f"--{name}", type=Path, nargs=2, metavar=("SOURCE", "TARGET"), help=purpose)
    command.add_argument(
        "--rounds",
        type=positive,
        default=5,
        help="rounds of expectation maximisation for the dictionary (default %(default)s)",
    )
    command.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    files = [args.train, args.test]
    if args.model is not None and not any(files):
        scores = measure_task(args.model, args.split, args.overrides)
        names = list(scores["copied source"])
        lines = [(floor, *(f"{values[name]:.2f}" for name in names)) for floor, values in scores.items()]
        print(markdown_table(("floor", *names), lines))
    elif args.model is None and all(files) and args.split is None and not args.overrides:
        for name, score in measure(tuple(args.train), tuple(args.test), args.rounds).items():
            print(f"{name:15} BLEU {score:.2f}")
    else:
        raise ConfigError("bnb-ds bench floors: give either a model, or the parallel files --train and --test")
