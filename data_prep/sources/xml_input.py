"""Streaming XML in constant memory. Entities are not expanded, and no DTD or other file is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

from lxml import etree

from bnb_ds.errors import DataError
from data_prep.sources.opening import open_input, reading_errors
from data_prep.sources.units import SourceFile


def elements(file: SourceFile, tags: Sequence[str], roots: Sequence[str]) -> Iterator[Any]:
    """Yield every element of these tags right below the root. It is freed when the next is asked for.

    Args:
        file: plain or compressed.
        tags: as lxml matches them; ``{*}page`` is a page of any namespace.
        roots: what the document's root may be called.

    Raises:
        DataError: the file is truncated, not well-formed, or has another root.
    """
    with reading_errors(file.path), open_input(file.path) as stream:
        yield from stream_elements(stream, file, tags, roots)


def stream_elements(stream: BinaryIO, file: SourceFile, tags: Sequence[str], roots: Sequence[str]) -> Iterator[Any]:
    """As :func:`elements`, from an open stream of XML; ``file`` is named in errors."""
    events = etree.iterparse(
        stream,
        events=("end",),
        tag=tags,
        resolve_entities=False,
        load_dtd=False,
        no_network=True,
        huge_tree=False,
        collect_ids=False,
        remove_comments=True,
        remove_pis=True,
    )
    checked = False
    try:
        for _, element in events:
            parent = element.getparent()
            if parent is None or parent.getparent() is not None:
                continue
            if not checked:
                _check_root(parent, file, roots)
                checked = True
            yield element
            element.clear()
            while element.getprevious() is not None:
                del parent[0]
    except etree.XMLSyntaxError as error:
        line, reason = error.lineno or 1, " ".join((error.msg or "empty").split())
        raise DataError(f"{file.path}: line {line}: not well-formed XML ({reason}); fetch the file again") from None
    if not checked and events.root is not None:
        _check_root(events.root, file, roots)


def local_name(element: Any) -> str:
    """The tag without its namespace."""
    return etree.QName(element).localname


def _check_root(root: Any, file: SourceFile, roots: Sequence[str]) -> None:
    if local_name(root) not in roots:
        raise DataError(
            f"{file.path}: its root is <{local_name(root)}>, not <{roots[0]}>; choose another command or --input"
        )
