"""Data flows one way: the order of the folders, no circles, short files, few files in a folder."""

from __future__ import annotations

import ast
import functools
import graphlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = REPOSITORY / "bnb_ds"
BNB_DS = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")  # the root hands names on
DATA_PREP = sorted((REPOSITORY / "data_prep").rglob("*.py"))
SOURCES = [*BNB_DS, *DATA_PREP, *sorted((REPOSITORY / "runs").rglob("*.py"))]
TESTS = sorted((REPOSITORY / "tests").rglob("*.py"))
FOLDERS = sorted({path.parent for path in [*BNB_DS, *DATA_PREP]})
MOST_MODULES = 16

#: from the ground up: a file imports from its own folder and from those before it
LAYERS = [
    "errors version",
    "common",
    "hf",
    "distributed",
    "shards",
    "data",
    "recurrences",
    "ctc",
    "dag",
    "targets",
    "model",
    "decoding",
    "modeling",
    "config",
    "model_factory",
    "checkpoint",
    "loggers",
    "train",
    "tune",
    "pretrain",
    "tasks",
    "baselines",
    "systems",
    "evaluate",
    "generate",
    "export",
    "finetune",
    "reproduce",
    "serve",
    "bench",
    "commands",
    "cli",
]
LAYERS_OF_DATA_PREP = ["sources", "tokenise", "jobs", "tools", "commands", "cli"]
#: all that data_prep may know of bnb_ds
OF_DATA_PREP = ("bnb_ds.errors", "bnb_ds.version", "bnb_ds.common", "bnb_ds.shards", "bnb_ds.data.tokenization")

#: module names that stand in several folders, and why
NAMED_TWICE = {
    "__main__": "pretrain/ and finetune/ have the same shape",
    "alignment": "ctc/ and dag/ have the same shape",
    "autograd": "ctc/ and dag/ have the same shape",
    "head": "ctc/ and dag/ have the same shape",
    "inputs": "ctc/ and dag/ have the same shape",
    "kernels": "ctc/ and dag/ have the same shape",
    "loss": "ctc/ and dag/ have the same shape",
    "main": "pretrain/ and finetune/ have the same shape",
    "plan": "pretrain/ and finetune/ have the same shape",
    "run": "pretrain/ and finetune/ have the same shape",
    "triton": "ctc/ and dag/ have the same shape",
    "viterbi": "ctc/ and dag/ have the same shape",
}


def shown(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def in_folders(paths: Iterable[Path]) -> pytest.MarkDecorator:
    """One test for the files of each folder: a test for each file would take longer to begin than to run."""
    folders = defaultdict(list)
    for path in paths:
        folders[path.parent].append(path)
    return pytest.mark.parametrize("paths", folders.values(), ids=map(shown, folders))


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def levels(layers: list[str]) -> dict[str, int]:
    return {name: level for level, names in enumerate(layers) for name in names.split()}


def imported(path: Path) -> Iterator[str]:
    """Every module a file imports, at any depth of its code and for type checkers too."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            modules = [name for name in inner if file_of(name) is not None]
            yield from modules
            if len(modules) < len(inner):
                yield node.module


def file_of(module: str) -> Path | None:
    """The file of a module of this repository."""
    path = REPOSITORY / module.replace(".", "/")
    return next((found for found in (path.with_suffix(".py"), path / "__init__.py") if found.is_file()), None)


def is_face(path: Path) -> bool:
    return path.name == "__init__.py"


def imports(paths: Iterable[Path]) -> Iterator[tuple[Path, str]]:
    return ((path, module) for path in paths for module in imported(path))


@in_folders(BNB_DS)
def test_a_file_imports_only_from_lower_layers(paths):
    level = levels(LAYERS)
    for path, module in imports(paths):
        own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        top, _, rest = module.partition(".")
        assert top not in ("data_prep", "runs", "tests"), path
        if top != "bnb_ds":
            continue
        other = rest.split(".")[0]
        assert other in level, f"{path}: imports the root, which only hands names on; import the module you mean"
        assert other == own or level[other] < level[own], f"{path}: {own} may not import {other}"


@in_folders(DATA_PREP)
def test_data_prep_imports_only_from_lower_layers(paths):
    level = levels(LAYERS_OF_DATA_PREP)
    for path, module in imports(paths):
        own = path.relative_to(REPOSITORY / "data_prep").parts[0].removesuffix(".py")
        top, _, rest = module.partition(".")
        assert top not in ("runs", "tests", "deepspeed"), path
        if top == "bnb_ds":
            assert module.startswith(OF_DATA_PREP), f"{path}: data_prep may not import {module}"
        if top == "data_prep":
            other = rest.split(".")[0]
            assert other == own or level[other] <= level[own], f"{path}: {own} may not import {other}"


@in_folders(SOURCES)
def test_a_file_imports_the_module_it_means(paths):
    """Folders hand names on to users; inside, an import through them would load all that they hand on."""
    for path, module in imports(paths):
        file = file_of(module)
        assert file is None or not is_face(file), f"{path}: {module} hands names on; import the module you mean"


@in_folders(SOURCES)
def test_one_importer_each(paths):
    """``torch.distributed`` and apex have one door."""
    for path, module in imports(paths):
        if path != PACKAGE / "distributed" / "ranks.py":
            assert not module.startswith("torch.distributed"), path
        if path != PACKAGE / "train" / "fused.py":
            assert module.split(".")[0] != "apex", path


def test_no_circles():
    graph = {path: {file for module in imported(path) if (file := file_of(module))} for path in SOURCES}
    graphlib.TopologicalSorter(graph).prepare()  # CycleError names the files of a circle


def test_a_circle_would_be_found():
    with pytest.raises(graphlib.CycleError):
        graphlib.TopologicalSorter({"a": {"b"}, "b": {"c"}, "c": {"a"}}).prepare()


@pytest.mark.parametrize("folder", FOLDERS, ids=shown)
def test_every_folder_says_what_it_is_for_and_holds_few_files(folder):
    docstring = ast.get_docstring(tree(folder / "__init__.py"))
    assert docstring, "say in one line what the folder is for"
    modules = [path for path in folder.glob("*.py") if not is_face(path)]
    assert len(modules) <= MOST_MODULES


def test_few_names_stand_twice():
    places = defaultdict(list)
    for path in SOURCES:
        if path.is_relative_to(PACKAGE) and not is_face(path):
            places[path.stem].append(shown(path))
    assert {name: paths for name, paths in places.items() if len(paths) > 1 and name not in NAMED_TWICE} == {}
    assert all(len(places[name]) > 1 for name in NAMED_TWICE), "an exception that is no longer needed"


@in_folders([*SOURCES, *TESTS])
def test_files_and_functions_stay_short(paths):
    for path in paths:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 350, path
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef):
                body = node.end_lineno - node.body[0].lineno + 1
                assert body <= 60, f"{path}: {node.name} has {body} lines"
