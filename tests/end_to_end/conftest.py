"""Fixtures of the tests of whole programs."""

from __future__ import annotations

import itertools
import shlex
import sys

import pytest


@pytest.fixture(scope="session")
def installed(tmp_path_factory):
    """A `tests.installing.Installed`."""
    from tests.installing import Installed

    return Installed(tmp_path_factory.mktemp("installed"))


@pytest.fixture
def forked(fork_server, tmp_path):
    """Like `tests.executing_documents.run`, for a Python program. A fork server saves the seconds for the imports."""
    from tests.executing_documents import moved

    numbers = itertools.count()

    def run_forked(command: str, folder) -> str:
        program, *arguments = shlex.split(moved(command, folder))
        if program in ("python", sys.executable):
            folder_of_program, _, program = arguments.pop(0).rpartition("/")
            assert folder_of_program == "runs"
        else:
            assert program == "bnb-ds"
        code, text = fork_server.run(program, arguments, tmp_path / f"{next(numbers)}.log")
        assert code == 0, text
        return text

    return run_forked


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, small_texts, small_tokenizer):
    """The folder that replaces `work/`, after the block `prepare`; it also holds a BERT checkpoint to start from."""
    from tests.documents import commands
    from tests.executing_documents import run, save_bert

    folder = tmp_path_factory.mktemp("documents")
    # By default one document in a hundred is held out. There are enough documents to get at least one.
    (folder / "corpus.txt").write_text("\n\n".join(text[i:] for text in small_texts for i in (0, 50, 100)))
    save_bert(folder / "bert", small_tokenizer)
    (command,) = commands("prepare")
    run(command.replace("CORPUS", f"{folder}/corpus.txt").replace("TOKENIZER", f"{folder}/bert"), folder)
    return folder
