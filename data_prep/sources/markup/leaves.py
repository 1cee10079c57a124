"""The first pass over a page, from left to right: comments, tags, and links and templates that hold no others.

It visits every character once: each search starts where the last one ended, and an end tag that the rest of the page
lacks is looked for once.
"""

from __future__ import annotations

import re

from data_prep.sources.markup.links import shown_of_link
from data_prep.sources.markup.marks import BREAK, DROPPED
from data_prep.sources.markup.site import Site
from data_prep.sources.markup.tags import LEFT_BY_TAG, OPAQUE, end_tag, left_by_element, tables
from data_prep.sources.templates import expander

_LEAF = re.compile(
    r"\[\[([^\[\]{}|<>\n]*)(?:\|([^\[\]{}<>\n]*))?\]\]"
    r"|(?<!\{)\{\{([^{}\[\]<>]*)\}\}"
    r"|<(/?)([A-Za-z][A-Za-z0-9]*)([\s/][^<>]*)?>"
    r"|<!--"
)
_REST_OF_LINE = re.compile(r"[ \t]*\n")
_LINK, _TEMPLATE, _TAG = (2, 1), 3, (5, 6)  # the last group that matched


def without_leaves(text: str, site: Site) -> str:
    """The page with these constructs replaced by what they leave."""
    out: list[str] = []
    search, add = _LEAF.search, out.append
    leaves = _Leaves(text, site)
    position = 0
    while (match := search(text, position)) is not None:
        start = match.start()
        if start > position:
            add(text[position:start])
        kind = match.lastindex
        if kind is None:
            position = leaves.end_of_comment(position, start)
        elif kind <= 2:
            add(shown_of_link(match[1], match[2], site))
            position = match.end()
        elif kind == 3:
            add(leaves.template(match[3]))
            position = match.end()
        else:
            shown, position = leaves.tag(match)
            add(shown)
    add(text[position:])
    return "".join(out)


class _Leaves:
    """What is remembered of one page."""

    def __init__(self, text: str, site: Site) -> None:
        self._text = text
        self._site = site
        self._without_end: set[str] = set()
        self._tables: dict[int, int] | None = None
        self._line_start = 0  # where the last comment that took its whole line ended

    def end_of_comment(self, position: int, start: int) -> int:
        """Where the text goes on; a comment that is alone on its line takes the line with it.

        Args:
            position: where the construct before it ended.
            start: where the comment starts.
        """
        text = self._text
        end = text.find("-->", start + 4)
        if end < 0:
            return len(text)
        end += 3
        line = text.rfind("\n", position, start) + 1 or (position if position == self._line_start else start + 1)
        if line <= start and not text[line:start].strip(" \t") and (rest := _REST_OF_LINE.match(text, end)):
            end = self._line_start = rest.end()
        return end

    def template(self, source: str) -> str:
        """A template without others inside it."""
        name, *parts = source.split("|")
        expand = expander(name)
        return DROPPED if expand is None else expand.text(parts, self._site)

    def tag(self, match: re.Match[str]) -> tuple[str, int]:
        """What a tag and what belongs to it leave, and where the text goes on."""
        name, end = match[5].lower(), match.end()
        left = LEFT_BY_TAG.get(name)
        if left is None:
            return match[0], end
        if match[4]:
            return left, end
        if name in OPAQUE:
            return self._opaque(name, match, left)
        if name == "table":
            if self._tables is None:
                self._tables = tables(self._text)
            after = self._tables.get(match.start())
            return (left, end) if after is None else (BREAK + DROPPED + BREAK, after)
        return left, end

    def _opaque(self, name: str, match: re.Match[str], left: str) -> tuple[str, int]:
        if (match[6] or "").endswith("/"):
            return left if name == "nowiki" else DROPPED, match.end()
        closing = None if name in self._without_end else end_tag(name).search(self._text, match.end())
        if closing is None:
            self._without_end.add(name)
            return left, match.end()
        return left_by_element(name, self._text[match.end() : closing.start()]), closing.end()
