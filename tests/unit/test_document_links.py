"""Documents and docstrings name only what exists; the map of the code is complete."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from bnb_ds.config.sections import PretrainRecipe
from bnb_ds.finetune.recipe import FinetuneRecipe
from bnb_ds.version import __version__
from tests import documents
from tests.documents import OTHERS, PACKAGES, PAGES, REPOSITORY

#: accounts of the past: what they name may be gone
HISTORY = ("CHANGELOG.md", "docs/log.md")
PRESENT = [document for document in [*PAGES, *OTHERS] if document not in HISTORY]
SOURCES = sorted(path for root in (*PACKAGES, "runs", "tests") for path in (REPOSITORY / root).rglob("*.py"))
YAML = [(page, content) for page in PAGES for _, language, content in documents.blocks(page) if language == "yaml"]


@pytest.mark.parametrize("document", [*PAGES, *OTHERS])
def test_links_lead_somewhere(document):
    folder = (REPOSITORY / document).parent
    for link in documents.links(document):
        target, _, anchor = link.partition("#")
        path = (folder / target).resolve() if target else REPOSITORY / document
        assert path.exists(), f"{document}: {link}"
        if anchor:
            assert anchor in documents.anchors(str(path.relative_to(REPOSITORY))), f"{document}: {link}"


@pytest.mark.parametrize("document", PRESENT)
def test_names_of_code_in_documents(document):
    missing = [word for word in documents.quoted_words(documents.prose(document)) if documents.is_missing(word)]
    assert not missing


@pytest.mark.parametrize("folder", sorted({path.parent for path in SOURCES}), ids=lambda folder: folder.name)
def test_names_of_code_in_docstrings(folder):
    for path in sorted(folder.glob("*.py")):
        words = documents.quoted_words(documents.comments_and_docstrings(path))
        assert not [word for word in words if documents.is_missing(word)], path


def test_the_map_names_every_file_of_every_folder():
    mapped = {}
    for row in re.findall(r"^\| `([\w/]+/)` \|(.*)\|$", documents.text("docs/code_map.md"), re.MULTILINE):
        folder, (_, face, files) = row[0], row[1].split("|")
        mapped[folder] = sorted(re.findall(r"`(\w+\.py)`", files))
        for name in re.findall(r"`([\w.]+)`", face):
            assert documents.name_exists(f"{folder.rstrip('/').replace('/', '.')}.{name}"), f"{folder}: {name}"
    there: dict[str, list[str]] = {}
    for path in SOURCES:
        folder = f"{path.parent.relative_to(REPOSITORY)}/"
        if folder.startswith(PACKAGES) and path.name != "__init__.py":
            there.setdefault(folder, []).append(path.name)
    assert mapped == there


def test_readme_stays_short():
    assert len(documents.text("README.md").splitlines()) <= 110


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load(documents.text("CITATION.cff"))
    assert citation["version"] == __version__
    assert f"## {__version__}" in documents.text("CHANGELOG.md")


@pytest.mark.parametrize(("page", "content"), YAML, ids=[f"{page}-{i}" for i, (page, _) in enumerate(YAML)])
def test_pieces_of_recipes_are_valid(page, content):
    values = {"output_dir": "work/runs/example", **yaml.safe_load(content)}
    if "epochs" not in values:
        values.setdefault("steps", 1)
    if "task" in values:
        FinetuneRecipe.model_validate({"model": {"kind": "bnb", "encoder": "bert"}, **values})
    else:
        PretrainRecipe.model_validate(values)


def test_a_name_that_is_gone_is_noticed():
    here = Path(__file__).relative_to(REPOSITORY)
    for word in (
        str(here),
        f"{here}::test_readme_stays_short",
        "bnb_ds/*",
        "bnb_ds.shards.TokenShards",
        "output_dir/runs",
    ):
        assert not documents.is_missing(word), word
    gone = [
        "bnb_ds/gone.py",
        f"{here}::test_gone",
        "runs/gone/*",
        "bnb_ds.gone",
        "bnb_ds.shards.Gone",
        "data_prep.cli.gone",
    ]
    assert all(map(documents.is_missing, gone))
