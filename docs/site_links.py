"""A hook of mkdocs: the site shows documents and pictures that lie outside docs/.

A link in a document is a path of the repository, so that it works wherever the file is read. The hook adds the outside
files to the site under the names below and rewrites the links to them.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

REPOSITORY = Path(__file__).resolve().parents[1]
#: path in the repository -> page of the site
OUTSIDE = {
    "RESULTS.md": "results.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "ds_configs/README.md": "deepspeed_configurations.md",
    "data_prep/FORMAT.md": "shard_format.md",
}
_HOME = {"README.md": "index.md"}
_PICTURES = "runs/plots"
_LINK = re.compile(r"(\]\()([^)#\s]+)(#[^)\s]*)?(\))")
_ROLE = re.compile(r":(?:class|data|func|meth|mod):(?=<code>)")
_FENCE = re.compile(r"(^```.*?^```)", re.DOTALL | re.MULTILINE)


def on_files(files: Files, config: Any) -> Files:
    """Add the outside files."""
    for path, page in OUTSIDE.items():
        files.append(File.generated(config, page, abs_src_path=str(REPOSITORY / path)))
    for picture in sorted((REPOSITORY / _PICTURES).glob("*.png")):
        files.append(File.generated(config, f"pictures/{picture.name}", abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Rewrite the links of a page, except in blocks of code."""
    origins = {page_name: path for path, page_name in OUTSIDE.items()}
    folder = posixpath.dirname(origins.get(page.file.src_uri, f"docs/{page.file.src_uri}"))
    parts = _FENCE.split(markdown)
    parts[::2] = [
        _LINK.sub(lambda link: f"{link[1]}{site_link(link[2], folder)}{link[3] or ''}{link[4]}", part)
        for part in parts[::2]
    ]
    return "".join(parts)


def on_page_content(html: str, page: Any, config: Any, files: Files) -> str:
    """Remove the roles of Sphinx in docstrings (``:class:``), which are not for this site."""
    return _ROLE.sub("", html)


def site_link(target: str, folder: str) -> str:
    """A link of a document in a folder of the repository -> the same as a link of the site, whose pages lie flat."""
    if "://" in target or target.startswith("mailto:"):
        return target
    path = posixpath.normpath(posixpath.join(folder, target))
    if path in OUTSIDE or path in _HOME:
        return {**OUTSIDE, **_HOME}[path]
    if path.startswith(f"{_PICTURES}/"):
        return f"pictures/{posixpath.basename(path)}"
    return path.removeprefix("docs/")
