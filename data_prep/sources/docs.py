"""The documentation corpus: English that every machine with this package already has.

It is the Python language documentation in the standard library (``pydoc_data.topics``) and the docstrings of the
packages this one depends on. Source files are parsed, never imported: an import can fail, print, or start a GPU.
"""

from __future__ import annotations

import ast
import gc
import importlib.metadata
import importlib.util
import inspect
import json
import os
import platform
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bnb_ds.common.files import new_file
from bnb_ds.errors import DataError
from data_prep.sources.documents import Document

# Import name and distribution name of what the installation brings in English; absent ones are passed over.
PACKAGES = {
    "numpy": "numpy",
    "torch": "torch",
    "transformers": "transformers",
    "deepspeed": "deepspeed",
    "datasets": "datasets",
    "pyarrow": "pyarrow",
    "pydantic": "pydantic",
    "tensorboard": "tensorboard",
    "huggingface_hub": "huggingface_hub",
    "tqdm": "tqdm",
    "nltk": "nltk",
}
MIN_CHARACTERS = 200  # shorter docstrings are names and one-liners

_MIN_WORDS = 30
_MIN_LETTER_SHARE = 0.6  # of the characters that are not white space; tables and code have fewer
_MAX_NON_ASCII_SHARE = 0.05  # a few docstrings are not English
_WORDS_IN_A_ROW = re.compile(r"[a-z]{2,},?\s+[a-z]{2,},?\s+[a-z]{2,}")
_END_OF_SENTENCE = re.compile(r"[a-z)`]\.(\s|$)")
_RULES = re.compile(r"^[ \t]*([-=*~^#+_])\1{3,}[ \t]*(\n|\Z)", re.MULTILINE)
_NOT_LETTERS = bytes(byte for byte in range(128) if not chr(byte).isalpha())
_SKIPPED_DIRECTORIES = {"tests", "test", "testing", "__pycache__", "_vendor", "vendor"}
# The model implementations of transformers repeat each other's docstrings with other class names: a third of the corpus
# that would teach little and put near-copies of held-out documents into the training split.
_SKIPPED_TREES = ("transformers/models",)
_DOCSTRING_OWNERS = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
# numpy and torch give compiled functions their docstrings through calls of these.
_DOCSTRING_CALLS = {"add_newdoc", "add_docstr", "_add_docstr", "add_docstr_all"}


@dataclass(frozen=True)
class DocsReport:
    """What :func:`write_docs` wrote and left out."""

    num_documents: int
    num_characters: int
    num_duplicates: int
    num_unreadable: int  # source files that do not parse


def write_docs(path: str | os.PathLike[str]) -> DocsReport:
    """Write the documentation corpus as .jsonl with columns ``id``, ``text`` and ``source``.

    Documents come in a fixed order, and equal installations give byte-identical files. Of equal texts (white space
    apart) the first stays.

    Raises:
        DataError: ``path`` exists, is not named .jsonl, or cannot be written; nothing is left then.
    """
    path = Path(path)
    if path.suffix != ".jsonl":
        raise DataError(f"{path}: the corpus is written as .jsonl; give --output a name that ends in it")
    seen: set[str] = set()
    unreadable: list[Path] = []
    num_documents = num_characters = num_duplicates = 0
    with new_file(path) as file, _paused_garbage_collector():
        for document in iterate_docs(unreadable):
            key = " ".join(document.text.split())
            if key in seen:
                num_duplicates += 1
                continue
            seen.add(key)
            row = {"id": document.id, "text": document.text, "source": document.source}
            file.write((json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8"))
            num_documents += 1
            num_characters += len(document.text)
    return DocsReport(num_documents, num_characters, num_duplicates, len(unreadable))


@contextmanager
def _paused_garbage_collector() -> Iterator[None]:
    """Three times as fast: every large syntax tree would set off a pass over all that torch and transformers import.

    Trees hold no cycles, so their memory is freed all the same.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def iterate_docs(unreadable: list[Path]) -> Iterator[Document]:
    """The documentation of this installation, not yet deduplicated; source files that do not parse are appended."""
    yield from _language_topics()
    for package, distribution in PACKAGES.items():
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            continue
        try:
            source = f"{distribution} {importlib.metadata.version(distribution)}"
        except importlib.metadata.PackageNotFoundError:  # on the path, but not installed
            source = distribution
        root = Path(next(iter(spec.submodule_search_locations)))
        for file in sorted(root.rglob("*.py")):
            relative = file.relative_to(root.parent)
            if not _SKIPPED_DIRECTORIES.isdisjoint(relative.parts) or relative.as_posix().startswith(_SKIPPED_TREES):
                continue
            try:
                docstrings = list(file_docstrings(file))
            except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
                unreadable.append(file)
                continue
            module = ".".join(relative.with_suffix("").parts).removesuffix(".__init__")
            for name, text in docstrings:
                yield Document(f"{module}.{name}" if name else module, text, source)


def file_docstrings(path: Path) -> Iterator[tuple[str, str]]:
    """Qualified name within the module and cleaned text of every docstring of a source file that reads as prose.

    Raises:
        SyntaxError, ValueError: not Python of this version.
    """
    code = path.read_bytes()
    if b'"""' not in code and b"'''" not in code:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about escapes in other people's strings
        tree = ast.parse(code)
    names: dict[str, int] = {}
    for name, raw in _raw_docstrings(tree, ""):
        if len(raw) < MIN_CHARACTERS:
            continue
        text = _clean(raw)
        if not is_prose(text):
            continue
        # Overloads and properties repeat a name; ids stay unique.
        names[name] = names.get(name, 0) + 1
        yield (f"{name}#{names[name]}" if names[name] > 1 else name), text


def _clean(raw: str) -> str:
    """Without indentation, and without the rows of dashes or stars that underline headings and frame tables."""
    return _RULES.sub("", inspect.cleandoc(raw)).strip()


def is_prose(text: str) -> bool:
    """Whether a text is English sentences of some length rather than a name, a table or code."""
    words = text.split()
    if len(text) < MIN_CHARACTERS or len(words) < _MIN_WORDS or "\x00" in text:
        return False
    visible = "".join(words)
    ascii_visible = visible.encode("ascii", "ignore")
    if len(visible) - len(ascii_visible) > _MAX_NON_ASCII_SHARE * len(visible):
        return False
    if len(ascii_visible.translate(None, _NOT_LETTERS)) < _MIN_LETTER_SHARE * len(visible):
        return False
    return bool(_WORDS_IN_A_ROW.search(text) and _END_OF_SENTENCE.search(text) and _is_encodable(text))


def _is_encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # a string literal can spell half of a surrogate pair
        return False
    return True


def _language_topics() -> Iterator[Document]:
    # The one import: a module of plain strings in the standard library. Some distributions leave it out.
    try:
        from pydoc_data.topics import topics
    except ImportError:
        return
    source = f"python {platform.python_version()}"
    for name in sorted(topics):
        text = _clean(topics[name])
        if is_prose(text):
            yield Document(f"python.topics.{name}", text, source)


def _raw_docstrings(node: ast.AST, prefix: str) -> Iterator[tuple[str, str]]:
    """Docstrings below a node in source order, with the qualified names of what they document."""
    if isinstance(node, _DOCSTRING_OWNERS):
        docstring = ast.get_docstring(node, clean=False)
        if docstring:
            yield prefix, docstring
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from _raw_docstrings(child, f"{prefix}.{child.name}" if prefix else child.name)
        elif isinstance(child, ast.Expr) and isinstance(child.value, ast.Call):
            yield from _call_docstrings(child.value)
        elif isinstance(child, (ast.If, ast.Try, ast.With)):
            yield from _raw_docstrings(child, prefix)


def _call_docstrings(call: ast.Call) -> Iterator[tuple[str, str]]:
    function = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if function not in _DOCSTRING_CALLS:
        return
    *targets, last = call.args
    owner = ".".join(ast.unparse(target).strip("'\"") for target in targets)
    # numpy documents methods as (name, text) pairs.
    parts = last.elts if isinstance(last, ast.Tuple) else [last]
    strings = [part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)]
    if strings:
        yield ".".join([owner, *strings[:-1]]), strings[-1]
