"""The second pass: links and templates that hold others, and braces and brackets without a partner.

Brackets are paired first, in one pass with a stack, as MediaWiki's preprocessor does. What is hidden is then skipped as
a whole, whatever it holds, and the text of a link is walked once however deep links lie in each other. Templates alone
are copied once for each template around them, up to a fixed depth.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from data_prep.sources.markup.links import is_hidden
from data_prep.sources.markup.marks import DROPPED, EDGE
from data_prep.sources.markup.site import Site
from data_prep.sources.templates import expander

#: templates below more templates than this are left out, as MediaWiki does
DEEPEST = 40

_MARK = re.compile(r"\[\[|\]\]|\{\{+|\}\}+")
_STRAY = re.compile(r"\{\{+(?:[^\n{}|\[\]]*(?:\||\n(?=[ \t]{0,9}\|)))?|\}\}+|\[\[[^\[\]\n|]*\||\[\[|\]\]")


@dataclass(slots=True)
class _Pair:
    start: int
    end: int
    width: int  # 2 of a template or a link, 3 of a parameter
    is_link: bool
    after: int  # index of the first pair behind it


@dataclass(slots=True)
class _Open:
    end: int  # of what is left of the opening marks
    width: int  # how many are left
    is_link: bool
    slot: int  # index at which the next pair of these marks goes


def without_nested(text: str, site: Site) -> str:
    """The text with nested links and templates replaced by what they leave, and single marks removed."""
    if "[[" not in text and "{{" not in text and "}}" not in text and "]]" not in text:
        return text
    pairs = _pairs(text)
    if pairs:
        text = _Walk(text, pairs, site).shown(0, len(text), 0, len(pairs), 0)
    return _STRAY.sub(_stray, text)


def _stray(match: re.Match[str]) -> str:
    if match[0] != "]]":
        return ""
    # Indices in code close two brackets at once: a[b[1]].
    before = match.string[max(match.start() - 100, 0) : match.start()].rpartition("\n")[2]
    return "]]" if before.count("[") - before.count("]") >= 2 else ""


def _pairs(text: str) -> list[_Pair | None]:
    """Pairs in the order in which they open; None where marks have no partner."""
    pairs: list[_Pair | None] = []
    stack: list[_Open] = []
    num_braces = 0
    for match in _MARK.finditer(text):
        start, end, mark = match.start(), match.end(), match[0]
        if mark == "[[":
            pairs.append(None)
            stack.append(_Open(end, 2, True, len(pairs) - 1))
        elif mark == "]]":
            if stack and stack[-1].is_link:
                opened = stack.pop()
                end += text[end : end + 1] == "]" and _has_open_bracket(text, max(opened.end, start - 300), start)
                pairs[opened.slot] = _Pair(opened.end - 2, end, 2, True, len(pairs))
        elif mark[0] == "{":
            pairs.extend([None] * ((end - start) // 2))
            stack.append(_Open(end, end - start, False, len(pairs) - 1))
            num_braces += 1
        else:
            while end - start >= 2 and num_braces:
                while stack[-1].is_link:
                    stack.pop()  # without a partner
                opened = stack[-1]
                width = 3 if opened.width >= 3 and end - start >= 3 else 2
                start += width
                pairs[opened.slot] = _Pair(opened.end - width, start, width, False, len(pairs))
                opened.slot -= 1
                opened.end -= width
                opened.width -= width
                if opened.width < 2:
                    stack.pop()
                    num_braces -= 1
    return pairs


def _has_open_bracket(text: str, start: int, end: int) -> bool:
    """Whether the first of three closing brackets ends an external link inside the internal one."""
    return text.rfind("[", start, end) > text.rfind("]", start, end)


class _Walk:
    """The text of one page with its pairs."""

    def __init__(self, text: str, pairs: list[_Pair | None], site: Site) -> None:
        self._text = text
        self._pairs = pairs
        self._site = site

    def shown(self, position: int, end: int, index: int, last: int, depth: int) -> str:
        """What a stretch of the text shows.

        Args:
            position: where the stretch begins; ``end`` is where it ends.
            index: of the first pair in it; ``last`` is that of one behind it.
            depth: number of templates around it.
        """
        text, pairs = self._text, self._pairs
        out: list[str] = []
        closing: list[int] = []  # ends of the links and parameters around, with the width of their marks
        while index < last:
            pair = pairs[index]
            if pair is None or pair.start < position:
                index += 1
                continue
            if pair.start >= end:
                break
            position = _close(text, out, closing, position, pair.start)
            out.append(text[position : pair.start])
            begin = self._content(pair, index)
            if begin is not None:
                out.append(EDGE)
                closing += (pair.width, pair.end)
                position, index = begin, index + 1
            else:
                out.append(self._replaced(pair, index, depth))
                position, index = pair.end, pair.after
        position = _close(text, out, closing, position, end)
        out.append(text[position:end])
        return "".join(out)

    def _content(self, pair: _Pair, index: int) -> int | None:
        """Where the visible text of a link or a parameter begins; None where nothing or something else is shown."""
        if not pair.is_link and pair.width == 2:
            return None
        begin = pair.start + pair.width
        bar = self._bar(pair, index + 1, begin)
        if not pair.is_link:
            return None if bar is None else bar + 1
        target = self._text[begin : min(pair.end - 2 if bar is None else bar, begin + 300)]
        if is_hidden(target, bar is not None, self._site):
            return None
        if bar is None:
            return begin + (len(target) - len(target.lstrip()) if target[:1] != ":" else 1)
        return bar + 1

    def _replaced(self, pair: _Pair, index: int, depth: int) -> str:
        """What a hidden link, a template or a parameter leaves."""
        begin, end = pair.start + 2, pair.end - 2
        if pair.is_link or pair.width == 3 or depth >= DEEPEST:
            return DROPPED
        bar = self._bar(pair, index + 1, begin)
        name_end = end if bar is None else bar
        if name_end - begin > 200:
            return DROPPED
        expand = expander(self._text[begin:name_end])
        if expand is None:
            return DROPPED
        parts = []
        inner = index + 1
        while bar is not None:
            while inner < pair.after and (self._pairs[inner] is None or self._pairs[inner].start < bar):
                inner += 1
            following = self._bar(pair, inner, bar + 1)
            parts.append(self.shown(bar + 1, end if following is None else following, inner, pair.after, depth + 1))
            bar = following
        return expand.text(parts, self._site)

    def _bar(self, pair: _Pair, index: int, position: int) -> int | None:
        """The next ``|`` of a pair that is not inside a pair below it.

        Args:
            pair: the pair.
            index: of the first pair at or behind the position.
            position: where to start.
        """
        end = pair.end - pair.width
        while True:
            while index < pair.after and (self._pairs[index] is None or self._pairs[index].start < position):
                index += 1
            limit = self._pairs[index].start if index < pair.after else end
            found = self._text.find("|", position, limit)
            if found >= 0:
                return found
            if index >= pair.after:
                return None
            position, index = self._pairs[index].end, self._pairs[index].after


def _close(text: str, out: list[str], closing: list[int], position: int, until: int) -> int:
    """Pass over the ends of links that lie before a place; where the text goes on."""
    while closing and closing[-1] <= until:
        end, width = closing.pop(), closing.pop()
        out.append(text[position : end - width])
        out.append(EDGE)
        position = end
    return position
