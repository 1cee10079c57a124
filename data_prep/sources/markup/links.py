"""What a link shows."""

from __future__ import annotations

import re

from data_prep.sources.markup.marks import DROPPED, EDGE
from data_prep.sources.markup.site import Site, folded

# At the ends of a link's text these would join with what stands beside it, or begin a list, a heading or a table.
_TOUCHY = frozenset("'*#:;=|!{}[]_- \t")

_EXTERNAL = re.compile(
    r"\[(?:(?:https?|ftps?|sftp|ssh|ircs?|gopher|telnet|nntp|news|svn|git|worldwind|mms|redis|xmpp|magnet|bitcoin|mailto"
    r"|tel|sms|sips?|geo|urn):|//)[^\[\]<>\"\x00-\x20\x7f\xa0]+[ \t\xa0]*([^\]\n]*)(\]?)"
)


def shown_of_link(target: str, text: str | None, site: Site) -> str:
    """What ``[[target|text]]`` shows.

    Args:
        target: the title, with its prefix.
        text: None where the link has no ``|``.
        site: whose names of namespaces hold.
    """
    if is_hidden(target, text is not None, site):
        return DROPPED
    shown = text or target.strip().removeprefix(":")
    if not shown:
        return DROPPED
    if shown[0] in _TOUCHY or shown[-1] in _TOUCHY:
        return f"{EDGE}{shown.replace('|', '&#124;')}{EDGE}"
    return shown.replace("|", "&#124;") if "|" in shown else shown


def is_hidden(target: str, has_text: bool, site: Site) -> bool:
    """Whether a link is one to a file, a category or another language, which running text does not show."""
    colon = target.find(":")
    if colon <= 0:
        return False
    prefix = folded(target[:colon])
    return prefix in site.hidden or (not has_text and prefix in site.media)


def without_external_links(text: str) -> str:
    """``[address text]`` as its text."""
    return _EXTERNAL.sub(_external, text) if "[" in text else text


def _external(match: re.Match[str]) -> str:
    # Without a `]` the rest of the line holds no link either, so the match may take it all.
    return (f"{EDGE}{shown}{EDGE}" if (shown := match[1].rstrip()) else DROPPED) if match[2] else match[0]
