"""The last pass: the punctuation around what was dropped, spaces and blank lines."""

from __future__ import annotations

import re

from data_prep.sources.markup.marks import BREAK, DROPPED, EDGE

_SPACES = re.compile("  +")
_BLANK_LINES = re.compile("\n\n\n+")
_AFTER_BRACKET = re.compile(r"\( ?[,;] (?=[^ )])")
_SEPARATORS = ",;:"
_TRIVIAL = " ,;:.\u2013-"
_CLOSING = {")": "(", "]": "["}
_MOST_BRACKETS = 8  # that are closed behind one text; each removal copies it


def tidy(text: str) -> str:
    """Text without traces of what was dropped, and with single spaces and at most one blank line.

    Brackets that held nothing else go, and so does one of two separators that now meet. Where nothing was dropped,
    brackets and punctuation stay as they are.
    """
    text = _SPACES.sub(" ", text.replace(EDGE, "").replace("\xa0", " ").replace("\t", " "))
    if DROPPED in text:
        text = _joined(text.split(DROPPED))
    text = _AFTER_BRACKET.sub("(", text.replace(BREAK, "\n"))
    text = "\n".join([line.strip(" ") for line in text.split("\n")])
    return _BLANK_LINES.sub("\n\n", text).strip()


def _joined(pieces: list[str]) -> str:
    """The pieces that lie between what was dropped, as one text."""
    out = [pieces[0]]
    between = ""  # separators and spaces since the last text
    num_brackets = 0
    for piece in pieces[1:]:
        if not piece.strip(_TRIVIAL):
            between += piece[:80]
            between = between[:80]
            continue
        left, right = _meet(out[-1], between, piece)
        while right[:1] in _CLOSING and left[-1:] == _CLOSING[right[0]] and num_brackets < _MOST_BRACKETS:
            left, right = left[:-1].rstrip(" "), right[1:]
            num_brackets += 1
        out[-1] = left
        between = ""
        if right:
            out.append(right)
            num_brackets = 0
    left, right = _meet(out[-1], between.rstrip(_SEPARATORS + " "), "")
    out[-1] = left
    return "".join((*out, right))


def _meet(left: str, between: str, right: str) -> tuple[str, str]:
    """The texts on both sides of a gap as they stand side by side.

    Args:
        left: what stands before; its last character may be a space.
        between: what stood between several gaps: separators, spaces, dashes.
        right: what follows.
    """
    start = right.lstrip(" ")
    first = start[:1]
    if first in _CLOSING and first:
        bare = left.rstrip(_TRIVIAL) if left.rstrip(_TRIVIAL)[-1:] == _CLOSING[first] else left.rstrip(" ,;:")
        return bare, start
    last = left.rstrip(" ")[-1:]
    if last in ("", "\n", BREAK, "(", "["):
        stripped = start.lstrip(",; ") if first and first in ",;" else start
        return (left.rstrip(" ") if last in ("(", "[") else left), stripped
    gap = between.strip(" ")
    if first in (",", ";"):
        return left.rstrip(" ,;:"), start
    if first in (".", "!", "?") and start[1:2] in ("", " ", "\n", '"', "'", BREAK):
        return left.rstrip(" ,;"), start
    if gap and gap[0] in "\u2013-":
        between = between.lstrip(" ") if left[-1:] == " " else between
        return left, (between.rstrip(" ") if right[:1] == " " else between) + right
    if gap and last not in _SEPARATORS:
        return left.rstrip(" ") + gap[0], right if right[:1] in (" ", "\n", BREAK, "") else f" {right}"
    if left[-1:] == " " or not left:
        return left, start
    return left, (f" {start}" if between[:1] == " " else right)
