"""MediaWiki markup to plain text: prose, headings, lists and link texts stay; everything else goes.

The passes follow MediaWiki's own order, so that a character is markup exactly where MediaWiki takes it for markup:
entities become characters last, and what ``<nowiki>`` protects waits as entities until then. Every pass is linear in
the length of the page.
"""

from __future__ import annotations

from data_prep.sources.markup.inline import with_characters, without_switches, without_variants
from data_prep.sources.markup.leaves import without_leaves
from data_prep.sources.markup.lines import without_line_markup
from data_prep.sources.markup.links import without_external_links
from data_prep.sources.markup.marks import without_controls
from data_prep.sources.markup.nested import without_nested
from data_prep.sources.markup.site import ANY_WIKI, Site
from data_prep.sources.markup.traces import tidy


def plain_text(wikitext: str, site: Site = ANY_WIKI) -> str:
    """The text of an article as its readers see it in running prose.

    Args:
        wikitext: the article's source.
        site: the wiki it comes from: its names of namespaces and its language.
    """
    text = without_leaves(without_controls(wikitext), site)
    text = without_nested(text, site)
    text = without_variants(without_switches(text))
    text = without_line_markup(without_external_links(text))
    return tidy(with_characters(text))
