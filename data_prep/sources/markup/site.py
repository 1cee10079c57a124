"""What a wiki calls its files and categories, and which links lead to other languages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from data_prep.sources.markup.names import ENGLISH_NAMESPACES, LANGUAGE_CODES, NAMESPACE_ROWS


@dataclass(frozen=True)
class Site:
    """The names of one wiki, in lower case with single spaces."""

    hidden: frozenset[str]  # prefixes of links that show nothing in running text: files, categories, other languages
    media: frozenset[str]  # prefixes of links that show a text only where one is given
    language: str = "en"  # code of the language the wiki is written in

    def is_english(self) -> bool:
        """Whether templates print English words here."""
        return self.language in ("en", "simple")


def site_of(namespaces: Mapping[str, str], language: str = "en") -> Site:
    """The site of a dump.

    Args:
        namespaces: the dump's names of namespaces by key, such as ``{"6": "Datei", "14": "Kategorie"}``. Older aliases
            of the same language are added. Where it is empty, the names of all languages hold.
        language: code of the wiki's language.
    """
    own = [folded(namespaces.get(key, "")) for key in ("6", "14", "-2")]
    local = [i for i in range(2) if own[i] and own[i] not in ENGLISH_NAMESPACES[i]]
    rows = [row for row in NAMESPACE_ROWS if not namespaces or (local and all(own[i] in row[i] for i in local))]
    files, categories, media = (
        frozenset().union(ENGLISH_NAMESPACES[i], [own[i]], *(row[i] for row in rows)) - {""} for i in range(3)
    )
    others = frozenset(folded(name) for key, name in namespaces.items() if key not in ("6", "14"))
    return Site((files | categories | LANGUAGE_CODES) - others, media - files - categories - LANGUAGE_CODES, language)


def folded(name: str) -> str:
    """A name as MediaWiki compares it: case, underscores and repeated spaces do not count."""
    return " ".join(name.replace("_", " ").lower().split())


#: for text whose wiki is unknown
ANY_WIKI = site_of({})
