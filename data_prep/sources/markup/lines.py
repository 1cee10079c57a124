"""The third pass, line by line: tables, headings, lists, rules, and runs of quotes."""

from __future__ import annotations

import re

from data_prep.sources.markup.marks import BREAK, DROPPED, EDGE

_QUOTES = re.compile(r"('{2,})")
_LIST_MARKS = re.compile(r"[*#:;]+[ \t]*")
_RULE = re.compile(r"-{4,}")
_TABLE_START = re.compile(r"[\s:\x03]*\{\|")
_NAMED_ARGUMENT = re.compile(r"[ \t]*\|[ \t]*[\w .-]{1,40}=")
_ROW = re.compile(r"[|!](?:[-+}]|.*(?:\|\||!!))")


def without_line_markup(text: str) -> str:
    """The text with what stands at the beginning of lines, and quotes, replaced by what they leave.

    A heading stands between blank lines; a table leaves one.
    """
    lines = text.split("\n")
    if "|" in text or "\n!" in text or text.startswith("!"):
        lines = _without_tables(lines)
    out = []
    for line in lines:
        if line:
            first = line[0]
            if first in "*#:;":
                line = line[_LIST_MARKS.match(line).end() :]
            elif first == "=":
                line = _heading(line)
            elif first == "-" and (match := _RULE.match(line)):
                line = line[match.end() :]
            if "''" in line:
                line = without_quotes(line)
        out.append(line)
    return "\n".join(out)


def without_quotes(line: str) -> str:
    """A line without the marks of italic and bold text; apostrophes that stand beside them stay.

    A run of four holds an apostrophe, one of more than five holds all but five. Where a line has an odd number of both
    kinds, one mark of bold text is an apostrophe and a mark of italic text, as MediaWiki chooses it.
    """
    if "'''" not in line:
        return line.replace("''", "")
    parts = _QUOTES.split(line)
    num_bold = num_italic = 0
    for i in range(1, len(parts), 2):
        width = len(parts[i])
        num_italic += width == 2 or width >= 5
        num_bold += width != 2
        parts[i] = "'" * (1 if width == 4 else max(width - 5, 0))
        if width in (3, 4):
            parts[i] += "\0"  # a mark of bold text alone
    if num_bold % 2 and num_italic % 2 and (chosen := _apostrophe(parts)) is not None:
        parts[chosen] = parts[chosen].replace("\0", "'")
    return "".join(parts).replace("\0", "")


def _apostrophe(parts: list[str]) -> int | None:
    """Which mark of bold text is an apostrophe: after a single letter, else after a word, else after a space."""
    after_word = after_space = None
    for i in range(1, len(parts), 2):
        if "\0" not in parts[i]:
            continue
        before = parts[i - 1] + parts[i].rstrip("\0")
        if before[-1:] == " ":
            after_space = i if after_space is None else after_space
        elif before[-2:-1] == " ":
            return i
        elif after_word is None:
            after_word = i
    return after_space if after_word is None else after_word


def _heading(line: str) -> str:
    stripped = line.rstrip(" \t" + DROPPED + EDGE)
    if len(stripped) < 3 or stripped[-1] != "=":
        return line
    width = len(stripped) - len(stripped.lstrip("="))
    width = (width - 1) // 2 if width == len(stripped) else min(width, len(stripped) - len(stripped.rstrip("=")))
    width = min(width, 6)
    return f"{BREAK}{BREAK}{stripped[width : len(stripped) - width].strip()}{BREAK}{BREAK}"


def _without_tables(lines: list[str]) -> list[str]:
    """Lines without tables, rows of tables that templates begin, and arguments of templates that never end."""
    keep = [True] * len(lines)
    tails: dict[int, str] = {}  # what stands behind the end of a table
    starts: list[int] = []
    for i, line in enumerate(lines):
        if "{|" in line and _TABLE_START.match(line):
            starts.append(i)
        elif starts and "|}" in line and line.lstrip(" \t:" + EDGE).startswith("|}"):
            start = starts.pop()
            if not starts:  # what is inside another table goes with it
                keep[start : i + 1] = [False] * (i + 1 - start)
                tails[i] = line.partition("|}")[2]
    if starts:
        _drop_unclosed(lines, keep, starts)
    _drop_rows(lines, keep)
    out = []
    for i, line in enumerate(lines):
        if keep[i]:
            out.append(line)
        elif i in tails:
            out.append(f"{BREAK}{DROPPED}{tails[i]}")
    return out


def _drop_unclosed(lines: list[str], keep: list[bool], starts: list[int]) -> None:
    """Of a table without an end, the lines that are rows; it ends with its section at the latest."""
    inside = False
    first_of = set(starts)
    for i in range(starts[0], len(lines)):
        line = lines[i].lstrip(" \t:" + EDGE)
        if i in first_of:
            inside = True
        elif line.startswith("=="):
            inside = False
        if inside and line[:1] in ("|", "!", "{"):
            keep[i] = False


def _drop_rows(lines: list[str], keep: list[bool]) -> None:
    """Lines with ``|`` or ``!`` in front that stand together and of which one can only be a row or an argument."""
    i = 0
    while i < len(lines):
        group = []
        while i < len(lines) and lines[i].lstrip()[:1] in ("|", "!"):
            group.append(i)
            i += 1
        rows = [j for j in group if keep[j]]
        if any(_ROW.match(line := lines[j].lstrip()) or _NAMED_ARGUMENT.match(line) for j in rows):
            for j in rows:
                keep[j] = False
        i += 1
