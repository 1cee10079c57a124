"""The documentation corpus."""

from __future__ import annotations

import gc
import json
import textwrap
from pathlib import Path

import pytest

from bnb_ds.errors import DataError
from data_prep.sources import docs
from data_prep.sources.docs import file_docstrings, is_prose, iterate_docs, write_docs

PROSE = (
    "Return the sum of the values over the requested axis. The result has the same type as the input unless another "
    "type is asked for. Values that are missing are left out of the sum, and the sum of nothing at all is zero."
)
OTHER = PROSE.replace("sum", "mean")


def docstrings(tmp_path: Path, code: str | bytes) -> dict[str, str]:
    path = tmp_path / "module.py"
    path.write_bytes(code if isinstance(code, bytes) else textwrap.dedent(code).encode("utf-8"))
    return dict(file_docstrings(path))


@pytest.fixture
def one_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """The corpus of one small package, so that the test takes no time."""
    monkeypatch.setattr(docs, "PACKAGES", {"tqdm": "tqdm", "no_such_package": "no-such-package"})


def test_docstrings_of_everything(tmp_path: Path) -> None:
    found = docstrings(
        tmp_path,
        f'''
        """{PROSE}"""
        import surely_not_installed; raise SystemExit("never imported")
        class A:
            """{PROSE}  A."""
            def method(self):
                """
                {PROSE}

                    indented
                """
            async def wait(self):
                def inner():
                    """{PROSE} inner."""
        if True:
            def f():
                """{PROSE} f."""
        else:
            def f():
                """{OTHER}"""
        def short():
            """Too short to learn from."""
        x = """{PROSE} not a docstring."""
        ''',
    )
    assert list(found) == ["", "A", "A.method", "A.wait.inner", "f", "f#2"]
    assert found["A.method"] == f"{PROSE}\n\n    indented"
    assert found["f#2"] == OTHER


def test_rows_of_dashes_are_dropped(tmp_path: Path) -> None:
    code = f'"""Heading\n-------\n{PROSE}\n\nTable -- of ---- words\n=====\n"""'
    assert docstrings(tmp_path, code)[""] == f"Heading\n{PROSE}\n\nTable -- of ---- words"


def test_docstrings_of_compiled_functions(tmp_path: Path) -> None:
    found = docstrings(
        tmp_path,
        f"""
        add_newdoc('numpy._core', 'nditer', '''{PROSE}''')
        add_newdoc('numpy._core', 'nditer', ('copy', '''{OTHER}'''))
        torch._C._add_docstr(torch.abs, r'''{PROSE}''')
        add_docstr(torch.add, '''{PROSE}'''.format(**common_args))
        print('''{PROSE}''')
        """,
    )
    assert found == {"numpy._core.nditer": PROSE, "numpy._core.nditer.copy": OTHER, "torch.abs": PROSE}


@pytest.mark.filterwarnings("error")
def test_odd_escapes_do_not_warn(tmp_path: Path) -> None:
    assert docstrings(tmp_path, f'def f():\n    """{PROSE} \\d"""\n')["f"].endswith("\\d")


def test_declared_encoding(tmp_path: Path) -> None:
    code = f'# -*- coding: latin-1 -*-\n"""{PROSE} Café."""\n'.encode("latin-1")
    assert docstrings(tmp_path, code)[""].endswith("Café.")


@pytest.mark.parametrize(
    "text",
    [
        PROSE[:199],
        "word " * 100,  # no sentence
        "| 1.0 | 2.0 | 3.0 |\n" * 20 + "and this is the table of numbers.",
        "Это описание функции, которая ничего не делает и ничего не возвращает. " * 4,
        PROSE + "\x00",
        PROSE + "\ud800",
        "A" * 300 + " is a word.",
    ],
)
def test_what_is_not_prose(text: str) -> None:
    assert is_prose(PROSE)
    assert not is_prose(text)


def test_corpus(tmp_path: Path, one_package: None) -> None:
    report = write_docs(tmp_path / "docs.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "docs.jsonl").read_text("utf-8").splitlines()]
    assert report.num_documents == len(rows) > 50
    assert report.num_characters == sum(len(row["text"]) for row in rows)
    assert {tuple(row) for row in rows} == {("id", "text", "source")}
    assert len({row["id"] for row in rows}) == len(rows)
    assert len({" ".join(row["text"].split()) for row in rows}) == len(rows)
    assert {row["source"].split()[0] for row in rows} == {"python", "tqdm"}
    texts = {row["id"]: row["text"] for row in rows}
    assert "Lambda expressions" in texts["python.topics.lambda"]
    assert any(row["id"].startswith("tqdm.") for row in rows)
    assert all(is_prose(row["text"]) for row in rows)
    assert gc.isenabled()


def test_corpus_is_reproducible(tmp_path: Path, one_package: None) -> None:
    write_docs(tmp_path / "a.jsonl")
    write_docs(tmp_path / "b.jsonl")
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()


def make_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **files: str | bytes) -> None:
    root = tmp_path / "site" / "made_up_package"
    for name, code in files.items():
        path = root / (name.replace("__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(code if isinstance(code, bytes) else code.encode("utf-8"))
    (root / "__init__.py").write_text(f'"""{PROSE} Root."""')
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setattr(docs, "PACKAGES", {"made_up_package": "made-up-package"})


def test_broken_files_are_counted_and_tests_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_package(
        tmp_path,
        monkeypatch,
        a=f'"""{PROSE}"""',
        b='"""unfinished',
        c=b'"""\x00"""',
        d=f'"""  {PROSE}\n"""',
        e='"""x"""\n' + "-" * 100_000 + "1",
        sub__f=f'"""{OTHER}"""',
        tests__g=f'"""{OTHER} g"""',
    )
    unreadable: list[Path] = []
    found = [d for d in iterate_docs(unreadable) if d.source == "made-up-package"]
    names = ["made_up_package", "made_up_package.a", "made_up_package.d", "made_up_package.sub.f"]
    assert [document.id for document in found] == names
    assert [path.name for path in unreadable] == ["b.py", "c.py", "e.py"]
    monkeypatch.setattr(docs, "_language_topics", lambda: iter(()))
    report = write_docs(tmp_path / "docs.jsonl")
    assert (report.num_documents, report.num_duplicates, report.num_unreadable) == (3, 1, 3)


def test_output_of_another_type(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"docs.txt: the corpus is written as .jsonl; give --output a name that ends"):
        write_docs(tmp_path / "docs.txt")


def test_output_that_exists(tmp_path: Path, one_package: None) -> None:
    (tmp_path / "docs.jsonl").write_text("mine")
    with pytest.raises(DataError, match=r"docs.jsonl: already exists; remove it or choose another output"):
        write_docs(tmp_path / "docs.jsonl")
    assert (tmp_path / "docs.jsonl").read_text() == "mine"


def test_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_package: None) -> None:
    def fail(path: Path):
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(docs, "file_docstrings", fail)
    with pytest.raises(KeyboardInterrupt):
        write_docs(tmp_path / "out" / "docs.jsonl")
    assert list((tmp_path / "out").iterdir()) == []
    assert gc.isenabled()


@pytest.mark.slow
def test_corpus_of_real_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docs, "PACKAGES", {name: docs.PACKAGES[name] for name in ("numpy", "datasets", "pydantic")})
    report = write_docs(tmp_path / "docs.jsonl")
    assert report.num_documents > 1_000
    assert 1_000_000 < report.num_characters < 10_000_000
