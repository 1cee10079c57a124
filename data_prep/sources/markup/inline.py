"""What is left within lines: switches, language variants and entities."""

from __future__ import annotations

import html
import re
from functools import lru_cache

from data_prep.sources.markup.marks import DROPPED, EDGE
from data_prep.sources.markup.switches import SWITCHES

_SWITCH = re.compile(r"__(\w{2,60}?)__")
_VARIANT_MARK = re.compile(r"-\{(?!\{)|\}-")
_LANGUAGE = r"\s*(?:[^;:=]*=>\s*)?[a-z]{2,3}(?:-[a-z]+)*\s*:"
# A semicolon that no language follows belongs to the text.
_VARIANT = re.compile(rf"(?:^|[;\x04]){_LANGUAGE}((?:[^;]|;(?!{_LANGUAGE}))*)")
_ENTITY = re.compile(r"&(?:#[0-9]{1,8}|#[xX][0-9a-fA-F]{1,7}|[A-Za-z][A-Za-z0-9]{1,31});")


def without_switches(text: str) -> str:
    """Without ``__NOTOC__`` and its like; ``__FILE__`` and ``__init__`` are text."""
    return _SWITCH.sub(_switch, text) if "__" in text else text


def _switch(match: re.Match[str]) -> str:
    # In small letters they work too, but so are names in programs written.
    return DROPPED if match[1].lower() in SWITCHES and match[1] == match[1].upper() else match[0]


def without_variants(text: str) -> str:
    """``-{zh-hans:a;zh-hant:b}-`` as its first variant."""
    if "-{" not in text:
        return text
    out: list[str] = []
    starts: list[int] = []  # where in `out` each open one begins
    position = 0
    for match in _VARIANT_MARK.finditer(text):
        out.append(text[position : match.start()])
        position = match.end()
        if match[0] != "}-":
            starts.append(len(out))
            out.append(match[0])
        elif starts:
            start = starts.pop()
            content = "".join(out[start + 1 :])
            del out[start:]
            # The text of one inside others would be copied once for each: MediaWiki gives up at some depth, too.
            out.append(_variant(content) if len(starts) < 20 else DROPPED)
        else:
            out.append(match[0])
    out.append(text[position:])
    return "".join(out)


def _variant(content: str) -> str:
    flags, bar, rules = content.partition("|")
    flags = set(flags.replace(" ", "").split(";")) if bar else set()
    if flags & {"H", "T", "-", "D", "N"}:
        return DROPPED
    if not bar:
        rules = content
    match = None if "R" in flags else _VARIANT.search(rules)
    return f"{EDGE}{(rules if match is None else match[1]).strip()}{EDGE}"


def with_characters(text: str) -> str:
    """Entities as the characters they name; what names none stays."""
    return _ENTITY.sub(_entity, text) if "&" in text else text


def _entity(match: re.Match[str]) -> str:
    return _character(match[0])


@lru_cache(maxsize=4096)
def _character(entity: str) -> str:
    character = html.unescape(entity)
    if character.endswith(";") or character in ("", "\ufffd") or (len(character) == 1 and character < " "):
        return character if character in ("\n", "\t") else entity
    return character
