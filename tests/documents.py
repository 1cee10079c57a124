"""The documents as text: their blocks, their links, and the names of code in them."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = ["README.md", *sorted(str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "docs").glob("*.md"))]
OTHERS = ["CONTRIBUTING.md", "RESULTS.md", "CHANGELOG.md", "data_prep/FORMAT.md", "ds_configs/README.md"]
PACKAGES = ("bnb_ds", "data_prep")
ROOTS = (*PACKAGES, "runs", "tests", "ds_configs", "docs")

_BLOCK = re.compile(r"(?:<!-- test: (\w+) -->\n)?^```(\w*)[^\n]*\n(.*?)^```", re.DOTALL | re.MULTILINE)
_INDENTED_FENCE = re.compile(r"^ *```.*?^ *```", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ +(.+?) *$", re.MULTILINE)
_QUOTED = re.compile(r"`+([^`]+)`+")


@functools.cache
def text(document: str) -> str:
    return (REPOSITORY / document).read_text(encoding="utf-8")


def prose(document: str) -> str:
    """A document without its blocks of code."""
    return _INDENTED_FENCE.sub("", text(document))


def blocks(document: str) -> Iterator[tuple[str | None, str, str]]:
    """Name that a comment gives it, language, and content of each block."""
    for name, language, content in _BLOCK.findall(text(document)):
        yield name or None, language, content


@functools.cache
def named_blocks() -> dict[str, str]:
    """Content of every block with a name, in all pages together."""
    found: dict[str, str] = {}
    for page in PAGES:
        for name, _, content in blocks(page):
            if name is not None:
                assert name not in found, f"{page}: another block is called {name}"
                found[name] = content
    return found


def commands(name: str) -> list[str]:
    """The command lines of the block below `<!-- test: name -->`, with continuation lines joined."""
    return [line for line in named_blocks()[name].replace("\\\n", " ").splitlines() if line.strip()]


def links(document: str) -> list[str]:
    """Targets of links and pictures that are places of this repository."""
    return [
        target for target in _LINK.findall(prose(document)) if "://" not in target and not target.startswith("mailto")
    ]


def anchors(document: str) -> set[str]:
    """What the headings of a document are called in links, as GitHub calls them."""
    kept = (re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()) for heading in _HEADING.findall(prose(document)))
    return {heading.replace(" ", "-") for heading in kept}


def quoted_words(prose_text: str) -> list[str]:
    """Words in back quotes, without punctuation around them."""
    return [word.strip(".,;:()\"'") for span in _QUOTED.findall(prose_text) for word in span.split()]


def comments_and_docstrings(path: Path) -> str:
    source = path.read_text(encoding="utf-8")
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = [ast.get_docstring(node) or "" for node in ast.walk(ast.parse(source)) if isinstance(node, kinds)]
    comments = [line.partition("# ")[2] for line in source.replace("#:", "#").splitlines() if "# " in line]
    return "\n\n".join([*docstrings, *comments])


def is_missing(word: str) -> bool:
    """Whether a word is a path or a dotted name of this repository, and there is no such thing."""
    if re.fullmatch(rf"({'|'.join(ROOTS)})/[\w./*:-]*", word):
        path, _, test = word.partition("::")
        if re.search(r"/[A-Z]+$", path):
            return False  # stands for a name
        if not any(REPOSITORY.glob(path.rstrip("/"))):
            return True
        return bool(test) and f"def {test}(" not in text(path)
    if re.fullmatch(rf"({'|'.join(PACKAGES)})(\.\w+)+", word):
        return not name_exists(word)
    return False


def name_exists(dotted: str) -> bool:
    """Whether a module, or what a module defines or hands on, has this name; nothing is imported."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        place = REPOSITORY.joinpath(*parts[:length])
        for path in (place.with_suffix(".py"), place / "__init__.py"):
            if path.is_file():
                return _is_defined(path, parts[length:])
    return False


def _is_defined(path: Path, names: list[str]) -> bool:
    if not names:
        return True
    name, *rest = names
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.ImportFrom) and name in (alias.asname or alias.name for alias in node.names):
            original = next(alias.name for alias in node.names if name == (alias.asname or alias.name))
            if not node.module.startswith(PACKAGES):
                return True  # of another project
            if name_exists(".".join([node.module, original, *rest])):
                return True
        if isinstance(node, ast.ClassDef) and node.name == name:
            # Whatever has no body of its own here may come from a class of another project.
            return not rest or rest[0] in _members(node) or bool(node.bases)
    return not rest and name in _members(_tree(path))


def _members(node: ast.AST) -> set[str]:
    """Names that a module or a class binds at any depth."""
    found = set()
    for child in ast.walk(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(child.name)
        elif isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store):
            found.add(child.id)
    return found


@functools.cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def reviews() -> tuple[str, str]:
    """The rows and the recipe of the first section of docs/own_data.md."""
    blocks = (("csv", "review,verdict"), ("yaml", "# work/reviews.yaml"))
    page = text("docs/own_data.md")
    rows, recipe = (re.search(rf"```{kind}\n({start}.*?)```", page, re.DOTALL)[1] for kind, start in blocks)
    return rows, recipe
