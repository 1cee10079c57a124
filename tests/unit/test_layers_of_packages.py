"""Data flows one way: bnb_ds imports neither data_prep nor runs; data_prep imports only what shards need."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SOURCES = sorted(path for folder in ("bnb_ds", "data_prep", "runs") for path in (REPOSITORY / folder).rglob("*.py"))
TESTS = sorted((REPOSITORY / "tests").rglob("*.py"))
OF_DATA_PREP = {
    f"bnb_ds.{name}" for name in ("errors", "files", "markdown", "memory", "outputs", "shards", "tokenization")
}


def imported(path: Path) -> Iterator[str]:
    """Every module a file imports, at any depth of its code."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_layers(path):
    modules = set(imported(path))
    tops = {module.split(".")[0] for module in modules}
    package = path.relative_to(REPOSITORY).parts[0]
    if package == "bnb_ds":
        assert not tops & {"data_prep", "runs", "tests"}
    if package == "data_prep":
        assert not tops & {"runs", "tests", "deepspeed"}
        ours = {
            module
            for module in modules
            if module.startswith("bnb_ds") and (REPOSITORY / f"{module.replace('.', '/')}.py").exists()
        }
        assert all(module in OF_DATA_PREP or module.startswith("bnb_ds.shard") for module in ours), ours
    if path.name != "distributed.py":
        assert not any(module.startswith("torch.distributed") for module in modules)
    if path.name != "fused.py":
        assert "apex" not in tops


@pytest.mark.parametrize("path", [*SOURCES, *TESTS], ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_files_and_functions_stay_short(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 350
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            body = node.end_lineno - node.body[0].lineno + 1
            assert body <= 60, f"{node.name} has {body} lines"
