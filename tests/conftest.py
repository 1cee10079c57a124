"""Fixtures for all tests: a small real corpus, its tokenizer and shards, and the data beside the checkout."""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path

import pytest

import tests.fuzzing  # noqa: F401 - registers the profile that --hypothesis-profile names

# A shell starts background processes with SIGINT ignored, and every process that a test starts would ignore it too.
signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: many small tests, few cores
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that reaches for the network must fail at once

SMALL_DOCUMENTS = 240


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put files with slow tests first. xdist deals files out in this order, and a slow last one would run alone."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_terminal_summary(terminalreporter) -> None:
    """With --durations N, also name the N files that take longest: a file is what a process is given at a time."""
    number = terminalreporter.config.option.durations
    if not number:
        return
    seconds: Counter[str] = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                seconds[report.nodeid.partition("::")[0]] += report.duration
    terminalreporter.section(f"slowest {number} files, of {sum(seconds.values()):.0f} s in all")
    for file, duration in seconds.most_common(number):
        terminalreporter.write_line(f"{duration:.0f}s {file}")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real data in the directory beside the checkout. Tests that need it are skipped where it is missing."""
    path = Path(__file__).resolve().parents[1].parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip(f"no real data at {path}")
    return path


@pytest.fixture(scope="session")
def small_texts() -> list[str]:
    """Paragraphs of English of 200 to 1,000 characters, from the standard library's documentation."""
    from pydoc_data.topics import topics

    paragraphs = [" ".join(text.split()) for name in sorted(topics) for text in topics[name].split("\n\n")]
    return [text for text in paragraphs if 200 <= len(text) <= 1000][:SMALL_DOCUMENTS]


@pytest.fixture(scope="session")
def small_tokenizer(small_texts, tmp_path_factory):
    """A cased BertTokenizerFast of at most 600 tokens, trained on ``small_texts``."""
    from bnb_ds.data.tokenization import load_tokenizer
    from data_prep.sources.documents import Document
    from data_prep.tokenise.vocab import train_vocabulary

    directory = tmp_path_factory.mktemp("small") / "tokenizer"
    train_vocabulary((Document(str(i), text, "") for i, text in enumerate(small_texts)), directory, vocab_size=600)
    return load_tokenizer(directory)


@pytest.fixture(scope="session")
def other_tokenizer(small_texts, tmp_path_factory):
    """The tokenizer of another language: of ``small_texts`` with capitals and small letters exchanged."""
    from bnb_ds.data.tokenization import load_tokenizer
    from data_prep.sources.documents import Document
    from data_prep.tokenise.vocab import train_vocabulary

    directory = tmp_path_factory.mktemp("other") / "tokenizer"
    documents = (Document(str(i), text.swapcase(), "") for i, text in enumerate(small_texts))
    train_vocabulary(documents, directory, vocab_size=450)
    return load_tokenizer(directory)


@pytest.fixture(scope="session")
def small_shards(small_texts, small_tokenizer, tmp_path_factory) -> Path:
    """A shard directory of ``small_texts``: several shards, one document in ten held out. Tests must not change it."""
    from data_prep.sources.documents import Document
    from tests.shard_building import build_shards

    directory = tmp_path_factory.mktemp("small") / "shards"
    documents = (Document(str(i), text, "small_texts") for i, text in enumerate(small_texts))
    build_shards(documents, directory, small_tokenizer, sources=[], holdout=0.1, tokens_per_shard=10_000)
    return directory


@pytest.fixture(scope="session")
def fork_server():
    """A `tests.fork_server.ForkServer`."""
    from tests.fork_server import ForkServer

    server = ForkServer()
    yield server
    server.close()


@pytest.fixture(scope="session")
def whole_run(small_shards, fork_server, tmp_path_factory):
    """A `tests.jobs.Job` that has trained on two ranks without interruption, with dropout. Tests must not change it."""
    from tests.jobs import Job

    job = Job(tmp_path_factory.mktemp("whole"), small_shards)
    job.train_forked(fork_server)
    return job
