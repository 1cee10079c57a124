"""Tags that MediaWiki knows, and what each leaves. Any other tag is text that readers see."""

from __future__ import annotations

import re
from functools import lru_cache

from data_prep.sources.markup.marks import BREAK, DROPPED, EDGE, literal

_CONTENTLESS = (
    *("ref", "references", "gallery", "timeline", "score", "syntaxhighlight", "source", "imagemap", "math", "chem"),
    *("ce", "hiero", "graph", "mapframe", "maplink", "templatedata", "templatestyles", "style", "script", "indicator"),
    *("inputbox", "categorytree", "dynamicpagelist", "includeonly", "charinsert", "rss", "quiz", "phonos"),
)
_BREAKING = (
    *("br", "hr", "p", "div", "li", "dd", "dt", "ul", "ol", "dl", "blockquote", "center", "poem", "table", "caption"),
    *("tr", "td", "th", "h1", "h2", "h3", "h4", "h5", "h6"),
)
_INLINE = (
    *("abbr", "b", "bdi", "bdo", "big", "cite", "code", "data", "del", "dfn", "em", "font", "i", "ins", "kbd", "link"),
    *("mark", "meta", "q", "rb", "rp", "rt", "rtc", "ruby", "s", "samp", "small", "span", "strike", "strong", "sub"),
    *("sup", "time", "tt", "u", "var", "wbr", "noinclude", "onlyinclude", "section", "translate", "tvar", "nobr"),
    *("nowiki", "pre"),
)

#: what a tag by itself becomes, by its name in lower case
LEFT_BY_TAG = {
    **dict.fromkeys(_CONTENTLESS, EDGE),
    **dict.fromkeys(_BREAKING, BREAK),
    **dict.fromkeys(_INLINE, EDGE),
}

#: elements that MediaWiki reads up to their end tag without looking for markup inside
OPAQUE = frozenset({*_CONTENTLESS, "nowiki", "pre"})

_NOWIKI = re.compile(r"</?nowiki\s*/?>", re.IGNORECASE)
_TABLE = re.compile(r"<(/?)table\b[^<>]*>", re.IGNORECASE)


def left_by_element(name: str, content: str) -> str:
    """What an opaque element becomes.

    Args:
        name: of its tag, in lower case.
        content: what stands between its tags.
    """
    if name == "nowiki":
        return literal(content)
    if name == "pre":
        return f"{BREAK}{literal(_NOWIKI.sub('', content))}{BREAK}"
    return "" if name == "includeonly" else DROPPED


@lru_cache(maxsize=256)
def end_tag(name: str) -> re.Pattern[str]:
    """Matches the end tag of an element; of its spellings only those in one case."""
    return re.compile(rf"</(?:{name}|{name.upper()}|{name.capitalize()})\s*>")


def tables(text: str) -> dict[int, int]:
    """Where the outermost HTML tables that have an end begin and end."""
    found: dict[int, int] = {}
    starts: list[int] = []
    for match in _TABLE.finditer(text):
        if not match[1]:
            starts.append(match.start())
        elif starts:
            start = starts.pop()
            if not starts:
                found[start] = match.end()
    return found
