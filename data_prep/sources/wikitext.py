"""MediaWiki markup to plain text: prose, headings, lists and link texts stay; everything else goes.

Built on mwparserfromhell, whose own ``strip_code`` leaves captions, galleries, table cells and the debris of references
behind. What it cannot parse (markup is often unbalanced) is removed afterwards by what it looks like.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

import mwparserfromhell
from mwparserfromhell.nodes import Comment, ExternalLink, Heading, HTMLEntity, Tag, Template, Text, Wikilink

from data_prep.sources.templates import expander

# Prefixes of links that show no text of the article: files and categories, in English and as further aliases; a dump
# names its own language's in its header.
HIDDEN_NAMESPACES = frozenset({"file", "image", "media", "category"})

_DROPPED_TAGS = frozenset(
    {
        *("ref", "references", "gallery", "table", "timeline", "score", "syntaxhighlight", "source", "imagemap"),
        *("math", "chem", "ce", "hiero", "graph", "mapframe", "maplink", "templatedata", "templatestyles", "style"),
        *("script", "indicator", "inputbox", "categorytree", "dynamicpagelist", "noinclude", "includeonly"),
        *("section", "pre"),
    }
)
_BREAKING_TAGS = frozenset(
    ("br", "hr", "p", "div", "li", "dd", "dt", "blockquote", "center", "tr", "td", "ul", "ol", "dl")
)
_LIST_MARKS = frozenset(("*", "#", ":", ";"))

_COMMENT = re.compile(r"<!--.*?(?:-->|\Z)", re.DOTALL)
_REFERENCE = re.compile(r"<ref\b[^<>]*?/\s*>|<ref\b[^>]*>.*?</ref\s*>", re.DOTALL | re.IGNORECASE)
_INTERLANGUAGE = re.compile(r"[a-z]{2,3}(?:-[a-z]+)*|simple")
_MAGIC_WORD = re.compile(r"__[A-Z]{3,}__")
_TEMPLATE = re.compile(r"\{\{[^{}]*\}\}")
_TABLE = re.compile(r"^[ \t:]*\{\|(?:(?!^[ \t:]*\{\|).)*?^[ \t:]*\|\}", re.DOTALL | re.MULTILINE)
_TABLE_LINE = re.compile(r"^[ \t:*#]*(?:\{\||\|\}|\|-|\|\+|[|!]).*$", re.MULTILINE)
_TEMPLATE_MARK = re.compile(r"\{\{+(?:[^\n{}|]*\|)?|\}\}+")
_TAG_MARK = re.compile(r"</?(?:[a-z][a-z0-9]*)\b[^<>\n]*>", re.IGNORECASE)
_LINK_MARK = re.compile(r"\[\[[^\[\]\n|]*\||\[\[|\]\]")
_APOSTROPHES = re.compile(r"'{2,}")
_EMPTY_BRACKETS = re.compile(r"[ \t]?\([\s,;:.\u2013-]*\)|\[[\s,;]*\]")
_AFTER_BRACKET = re.compile(r"\(\s*[,;:]\s*")
_BEFORE_BRACKET = re.compile(r"\s*[,;:]?\s*\)")
_SPACES = re.compile(r"[ \t\xa0]+")
_BEFORE_MARK = re.compile(r" +([,.;:!?])(?=\s|$)")
_BLANK_LINES = re.compile(r"\n\s*\n+")


def plain_text(wikitext: str, hidden_namespaces: Collection[str] = HIDDEN_NAMESPACES) -> str:
    """The text of an article as its readers see it in running prose.

    Args:
        wikitext: the article's source.
        hidden_namespaces: lower-case prefixes of links to files and categories.
    """
    # These two are removed first: unbalanced markup inside them would spoil the tree of everything after them.
    wikitext = _REFERENCE.sub("", _COMMENT.sub("", wikitext))
    tree = mwparserfromhell.parse(wikitext, skip_style_tags=True)
    return _tidy("".join(_nodes(tree.nodes, hidden_namespaces)), hidden_namespaces)


def _nodes(nodes: Iterable[object], hidden: Collection[str]) -> Iterable[str]:
    for node in nodes:
        if isinstance(node, Text):
            yield node.value
        elif isinstance(node, Wikilink):
            yield _link(node, hidden)
        elif isinstance(node, ExternalLink):
            yield _inner(node.title, hidden) if node.brackets else str(node.url)
        elif isinstance(node, Heading):
            yield f"\n\n{_inner(node.title, hidden).strip()}\n\n"
        elif isinstance(node, HTMLEntity):
            yield _entity(node)
        elif isinstance(node, Template):
            yield _template(node, hidden)
        elif isinstance(node, Tag):
            yield _tag(node, hidden)
        elif not isinstance(node, Comment):
            yield ""  # an argument of a template


def _inner(code: object, hidden: Collection[str]) -> str:
    return "".join(_nodes(code.nodes, hidden)) if code is not None else ""


def _link(link: Wikilink, hidden: Collection[str]) -> str:
    title = str(link.title).strip()
    prefix, colon, _ = title.partition(":")
    prefix = prefix.strip().lower()
    if colon and (prefix in hidden or (link.text is None and _INTERLANGUAGE.fullmatch(prefix))):
        return ""
    if link.text is not None:
        return _inner(link.text, hidden)
    return _inner(link.title, hidden).strip().removeprefix(":")


def _tag(tag: Tag, hidden: Collection[str]) -> str:
    name = str(tag.tag).strip().lower()
    if name in _DROPPED_TAGS:
        return ""
    if str(tag.wiki_markup or "") in _LIST_MARKS:
        return ""
    inner = _inner(tag.contents, hidden)
    return f"\n{inner}\n" if name in _BREAKING_TAGS else inner


def _entity(entity: HTMLEntity) -> str:
    try:
        return entity.normalize()
    except (ValueError, KeyError):
        return ""


def _template(template: Template, hidden: Collection[str]) -> str:
    name = " ".join(str(template.name).split()).lower().replace("_", " ")
    expand = expander(name)
    if expand is None:
        return ""
    # ``1=`` names the first argument explicitly, which is how one that holds an equals sign is written.
    values = {str(parameter.name).strip(): parameter.value for parameter in template.params}
    texts = {key: _inner(value, hidden).strip() for key, value in values.items()}
    positions = sorted(int(key) for key in texts if key.isdecimal())
    return expand([texts[str(position)] for position in positions], texts)


def _tidy(text: str, hidden: Collection[str]) -> str:
    text = _until_stable(_TABLE, text)
    text = _until_stable(_TEMPLATE, text)
    text = _until_stable(_hidden_link(hidden), text)
    text = _TABLE_LINE.sub("", text)
    text = _MAGIC_WORD.sub("", text)
    text = _LINK_MARK.sub("", _TEMPLATE_MARK.sub("", _TAG_MARK.sub("", text)))
    text = _APOSTROPHES.sub("", text)
    text = _until_stable(_EMPTY_BRACKETS, text)
    text = _BEFORE_BRACKET.sub(")", _AFTER_BRACKET.sub("(", text))
    text = _BEFORE_MARK.sub(r"\1", _SPACES.sub(" ", text))
    text = "\n".join(line.strip() for line in text.split("\n"))
    return _BLANK_LINES.sub("\n\n", text).strip()


def _hidden_link(hidden: Collection[str]) -> re.Pattern[str]:
    # `re` keeps what it has compiled, so this costs a look-up.
    return re.compile(rf"\[\[\s*(?:{'|'.join(map(re.escape, sorted(hidden)))})\s*:[^\[\]]*\]\]", re.IGNORECASE)


def _until_stable(pattern: re.Pattern[str], text: str) -> str:
    """Remove matches from the inside out."""
    count = 1
    while count:
        text, count = pattern.subn("", text)
    return text
