"""The text of an XML element with inline markup: emphasis, sub- and superscripts, formulas in MathML."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from lxml import etree

# Far below the limits of Python's stack, which other programs in the process may have set.
_MOST_LEVELS = 200
_EMPHASIS = ("b", "i", "u", "strong", "em", "bold", "italic")
_BOLD = ("b", "strong", "bold")
_SCRIPTS = ("sub", "sup")
# These stand apart from what is beside them. PubMed's DTD has none of HTML and JATS; publishers send them still.
_BLOCKS = frozenset(
    (
        *("DispFormula", "mtable", "mtr", "mlabeledtr", "mtd", "mspace"),
        *("br", "p", "div", "ul", "ol", "li", "table", "tr", "td", "th"),
        *("break", "sec", "title", "list", "list-item", "disp-formula"),
    )
)
_LEFT_OUT = ("annotation", "annotation-xml")  # the formula once more, in another notation
# Neither can occur in XML.
_EDGE = "\x00"  # of a fraction: a space between letters or digits, and nothing elsewhere
_BREAK = "\x01"
_EDGE_OF_WORDS = re.compile(rf"(?<=\w){_EDGE}(?=\w)")
_ONE_TERM = re.compile(r"[\w.,\u2032]*")


class NestingError(ValueError):
    """More levels of elements than any text has."""


class EntityReferenceError(ValueError):
    """A text holds a reference to an entity, which only the document's own DTD could explain."""


def text_of(element: Any) -> str:
    """The text of an element and everything below it on one line, white space made single spaces.

    Text reads as it is displayed, as far as one line can: sub- and superscripts join what they follow, a fraction is
    ``1/2``, and a space separates emphasised words that stand side by side.

    Raises:
        EntityReferenceError: an entity would have to be expanded.
        NestingError: elements are nested too deeply.
    """
    return " ".join(lines_of(element))


def lines_of(element: Any, label_of: Callable[[str | None, str], str] = lambda label, text: text) -> list[str]:
    """The same in lines: an element of the same name inside it has lines of its own.

    Args:
        element: for example ``AbstractText``.
        label_of: joins a line and the attribute ``Label`` of the element that it begins.
    """
    if len(element) == 0:
        return [label_of(element.get("Label"), " ".join((element.text or "").split()))]
    _refuse_deep(element)
    pieces: list[str] = []
    labels = [element.get("Label")]
    _append(element, pieces, element.tag, labels)
    text = _EDGE_OF_WORDS.sub(" ", "".join(pieces)).replace(_EDGE, "")
    lines = [" ".join(line.split()) for line in text.split(_BREAK)]
    return [label_of(label, line) for label, line in zip(labels, lines, strict=True) if line]


def _refuse_deep(element: Any) -> None:
    """Raise NestingError, before the functions below call themselves for each level."""
    depth = 0
    for event, _ in etree.iterwalk(element, events=("start", "end")):
        depth += 1 if event == "start" else -1
        if depth > _MOST_LEVELS:
            raise NestingError("elements are nested too deeply")


def _append(element: Any, pieces: list[str], nested: str, labels: list[str | None]) -> None:
    """Append the text of an element; those of the name ``nested`` inside it get lines and labels of their own."""
    if element.text:
        pieces.append(element.text)
    previous = ""  # the name of the element right before, if no text is between
    for child in element:
        if child.tag is etree.Entity:
            raise EntityReferenceError(f"holds the entity reference {child.text}")
        name = _name(child)
        if child.tag == nested:
            labels += [child.get("Label"), None]  # what follows goes on without a label
            _append_between(_BREAK, child, pieces, nested, labels)
        elif name in _BLOCKS:
            _append_between(" ", child, pieces, nested, labels)
        elif name in _FORMULAS:
            pieces.append(_FORMULAS[name](child))
        elif name not in _LEFT_OUT:
            if name in _EMPHASIS and previous in _EMPHASIS and not _begins_with_script(child):
                pieces.append(" ")
            _append(child, pieces, nested, labels)
            if name in _BOLD and child.tail and child.tail[0].isalpha() and pieces and pieces[-1].endswith(":"):
                pieces.append(" ")  # a label of its own
        if child.tail:
            pieces.append(child.tail)
        previous = "" if child.tail else name


def _append_between(mark: str, element: Any, pieces: list[str], nested: str, labels: list[str | None]) -> None:
    pieces.append(mark)
    _append(element, pieces, nested, labels)
    pieces.append(mark)


def _begins_with_script(element: Any) -> bool:
    return not element.text and len(element) > 0 and element[0].tag in _SCRIPTS


def _name(element: Any) -> str:
    return element.tag.rpartition("}")[2]


# MathML


def _formula(element: Any) -> str:
    """The text of a part of a formula."""
    if (make := _FORMULAS.get(_name(element))) is not None:
        return make(element)
    pieces: list[str] = []
    _append(element, pieces, "", [])
    return "".join(pieces).strip()


def _term(text: str) -> str:
    """In parentheses where it is more than a number or a name."""
    return text if _ONE_TERM.fullmatch(text) else f"({text})"


def _parts(element: Any) -> list[str]:
    """The parts of a formula; text that stands between them, where MathML has none, is not lost."""
    parts = [(element.text or "").strip()]
    for child in element:
        if child.tag is etree.Entity:
            raise EntityReferenceError(f"holds the entity reference {child.text}")
        parts += ([] if _name(child) in _LEFT_OUT else [_formula(child)]) + [(child.tail or "").strip()]
    return [part for part in parts if part]


def _fraction(element: Any) -> str:
    return f"{_EDGE}{'/'.join(map(_term, _parts(element)))}{_EDGE}"


def _square_root(element: Any) -> str:
    return f"\u221a{_term(''.join(_parts(element)))}"


def _root(element: Any) -> str:
    base, *index = map(_term, _parts(element) or [""])
    return f"{_EDGE}{''.join(index)}\u221a{base}"


def _fenced(element: Any) -> str:
    separator = element.get("separators", ",")[:1]
    inner = f"{separator} ".join(_parts(element))
    return f"{element.get('open', '(')}{inner}{element.get('close', ')')}"


_FORMULAS: dict[str, Callable[[Any], str]] = {
    "mfrac": _fraction,
    "msqrt": _square_root,
    "mroot": _root,
    "mfenced": _fenced,
}
