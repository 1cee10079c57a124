"""The site of docs/ builds without a warning, and its pages load nothing from other servers."""

from __future__ import annotations

import re
import sys

import pytest

from tests import documents, launching

pytestmark = pytest.mark.slow

for package in ("mkdocs", "material", "mkdocstrings", "mkdocstrings_handlers.python"):
    pytest.importorskip(package)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    directory = tmp_path_factory.mktemp("site")
    result = launching.run([sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(directory)])
    assert result.returncode == 0, result.stdout + result.stderr
    return directory


def test_every_page_is_there(site):
    pages = [page.removeprefix("docs/").removesuffix(".md") for page in documents.PAGES if page.startswith("docs/")]
    for page in [*pages, "results", "changelog", "contributing", "deepspeed_configurations", "shard_format"]:
        assert (site / ("" if page == "index" else page) / "index.html").is_file(), page


def test_links_to_files_outside_docs_lead_to_pages(site):
    assert 'href="../shard_format/"' in (site / "corpora" / "index.html").read_text()
    assert 'href="../deepspeed_configurations/"' in (site / "pretraining" / "index.html").read_text()
    results = (site / "results" / "index.html").read_text()
    pictures = re.findall(r'<img [^>]*src="\.\./([^"]+)"', results)
    assert pictures
    assert all((site / picture).is_file() for picture in pictures)


def test_the_api_is_written_from_docstrings(site):
    api = (site / "api" / "index.html").read_text()
    for name in (
        "BnbConfig",
        "BnbForConditionalGeneration",
        "BnbPipeline",
        "linear_ctc_loss",
        "TokenShards",
        "get_task",
    ):
        assert name in api
    assert "latent_dropout" in api  # an argument's description
    assert ":class:" not in api


def test_nothing_is_loaded_from_elsewhere(site):
    loaded = re.compile(
        r'<(?:script|img|iframe)[^>]*\ssrc="(?:https?:)?//|<link(?![^>]*rel="canonical")[^>]*href="(?:https?:)?//'
    )
    for page in site.rglob("*.html"):
        assert not loaded.search(page.read_text()), page
