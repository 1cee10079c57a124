"""Streaming XML in bounded memory. Entities are not expanded, and no DTD or other file is loaded."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

from lxml import etree

from bnb_ds.errors import DataError
from data_prep.sources.opening import open_input, reading_errors
from data_prep.sources.units import SourceFile

_HEAD_BYTES = 1 << 14
_MOST_BYTES = 1 << 28  # of one element; the largest page of a wiki has 2 MB
# A document that begins so declares no entities: its root begins before any place for them, in ASCII letters.
_WITHOUT_ENTITIES = re.compile(
    rb"(?:\xef\xbb\xbf)?"
    rb"(?:<\?xml(?:\s+(?:version|standalone)\s*=\s*['\"][\w.]*['\"]"
    rb"|\s+encoding\s*=\s*['\"](?i:utf-?8|us-ascii|iso-8859-1)['\"])*\s*\?>)?"
    rb"\s*(?:<!DOCTYPE[^\[\]<>]*>\s*)?<[A-Za-z]"
)


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
    bounded = _Bounded(stream, file, tags)
    events = etree.iterparse(
        bounded,
        events=("end",),
        tag=tags,
        resolve_entities=False,
        load_dtd=False,
        no_network=True,
        # Texts of more than 10 MB, and no limit of libxml2's on what entities expand to: only where there are none.
        huge_tree=bounded.has_no_entities,
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
            bounded.num_bytes = 0
            yield element
            element.clear()
            while element.getprevious() is not None:
                del parent[0]
    except etree.XMLSyntaxError as error:
        line, reason = error.lineno or 1, " ".join((error.msg or "empty").split())
        raise DataError(f"{file.path}: line {line}: not well-formed XML ({reason}); fetch the file again") from None
    if not checked and events.root is not None:
        _check_root(events.root, file, roots)


class _Bounded:
    """A stream of XML in which no element may have more than a certain number of bytes.

    Attributes:
        has_no_entities: whether its beginning shows that it declares none.
        num_bytes: read since this was last set to 0.
    """

    def __init__(self, stream: BinaryIO, file: SourceFile, tags: Sequence[str]) -> None:
        self._stream = stream
        self._file = file
        self._name = tags[-1].rpartition("}")[2]
        self._head = stream.read(_HEAD_BYTES)
        self.has_no_entities = _WITHOUT_ENTITIES.match(self._head) is not None
        self.num_bytes = 0

    def read(self, size: int) -> bytes:
        """At most ``size`` bytes; raises DataError where an element is too long."""
        data, self._head = (self._head or self._stream.read(size)), b""
        self.num_bytes += len(data)
        if self.num_bytes > _MOST_BYTES:
            raise DataError(
                f"{self._file.path}: more than {_MOST_BYTES >> 20} MiB without the end of a <{self._name}>; "
                "fetch the file again"
            )
        return data


def local_name(element: Any) -> str:
    """The tag without its namespace."""
    return element.tag.rpartition("}")[2]  # etree.QName refuses names such as `:x`, which libxml2 reads


def _check_root(root: Any, file: SourceFile, roots: Sequence[str]) -> None:
    if local_name(root) not in roots:
        raise DataError(
            f"{file.path}: its root is <{local_name(root)}>, not <{roots[0]}>; choose another command or --input"
        )
