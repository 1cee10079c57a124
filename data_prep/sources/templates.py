"""Templates that are part of a sentence, as text: quantities, dates, foreign words, dashes, quotations.

Most templates are boxes, notices and references, which running prose does without; so a template says nothing unless
its name is in one of the tables here. They hold what is common in English articles and does the same in every one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from data_prep.sources.languages import LANGUAGES
from data_prep.sources.markup.marks import EDGE
from data_prep.sources.markup.quantities import as_of, convert, event, formatted, fraction, old_style_date, value
from data_prep.sources.markup.site import Site, folded

#: the text of a template from its arguments by position, its arguments by name, and its wiki
Expand = Callable[[Sequence[str], Mapping[str, str], Site], str]

# What stands for itself. Characters that are markup are entities, for these texts pass through the line rules.
_FIXED = {
    **dict.fromkeys(("ndash", "en dash", "endash", "\u2013"), "\u2013"),
    **dict.fromkeys(("mdash", "em dash", "emdash", "mdashb", "\u2014"), "\u2014"),
    **dict.fromkeys(("spaced ndash", "snd", "snds", "spnd", "spaced en dash", "dash"), " \u2013 "),
    **dict.fromkeys(("spaced mdash", "spaced em dash"), " \u2014 "),
    **dict.fromkeys(("nbsp", "spaces", "space", "thinsp", "thin space", "hairsp", "sp", "pad"), " "),
    **dict.fromkeys(("shy", "zwj", "zwnj", "zwsp", "wbr"), ""),
    **dict.fromkeys(("\u00b7", "middot", "dot"), " \u00b7 "),
    **dict.fromkeys(("\u2022", "bull", "bullet"), " \u2022 "),
    **dict.fromkeys(("okina", "ayin"), "\u02bb"),
    **dict.fromkeys(("hamza",), "\u02bc"),
    **dict.fromkeys(("'s",), "&#39;s"),
    **dict.fromkeys(("'", "apostrophe", "single+apostrophe"), "&#39;"),
    **dict.fromkeys(("' \"", "'\""), '&#39; "'),
    **dict.fromkeys(("\" '", "\"'"), '" &#39;'),
    **dict.fromkeys(("!", "pipe"), "&#124;"),
    **dict.fromkeys(("=", "equals", "equal"), "&#61;"),
    **dict.fromkeys(("(",), "&#123;"),
    **dict.fromkeys((")",), "&#125;"),
    **dict.fromkeys(("((",), "&#123;&#123;"),
    **dict.fromkeys(("))",), "&#125;&#125;"),
    **dict.fromkeys(("minus", "\u2212"), "\u2212"),
    **dict.fromkeys(("times", "\u00d7"), "\u00d7"),
    **dict.fromkeys(("pm", "\u00b1"), "\u00b1"),
    **dict.fromkeys(("deg", "\u00b0"), "\u00b0"),
    "\\": " / ",
    "pi": "\u03c0",
    "phi": "\u03c6",
    "ell": "\u2113",
    "eqm": " \u21cc ",
    "euro": "\u20ac",
}

# Which of the arguments readers see, counted from the end where negative.
_SHOWN = {
    **dict.fromkeys(
        ("lang", "transl", "transliteration", "translit", "rtl-lang", "script", "w", "resize", "hover"), -1
    ),
    **dict.fromkeys(
        ("nowrap", "nobr", "nobreak", "small", "smaller", "big", "larger", "sc", "smallcaps", "smallcaps2"), 0
    ),
    **dict.fromkeys(
        ("em", "strong", "italics", "plainlist", "visible anchor", "vanchor", "italic", "bold", "nobold"), 0
    ),
    **dict.fromkeys(("abbr", "abbrv", "tooltip", "ill", "interlanguage link", "iw", "nobold", "noitalic"), 0),
    **dict.fromkeys(("quote", "cquote", "bquote", "blockquote", "quotation", "poemquote", "centered quote", "poem"), 0),
    **dict.fromkeys(("math", "mvar", "sup", "sub", "ipa", "flag", "flagcountry", "flagu", "underline", "strike"), 0),
    **dict.fromkeys(("unicode", "hebrew", "polytonic", "pie", "var", "kbd", "code", "tt", "mono", "samp", "normal"), 0),
    **dict.fromkeys(("center", "right", "nospell", "as written", "overline", "longitem", "by", "baseball year"), 0),
    **dict.fromkeys(("color", "font color", "colored text", "audio", "pronunciation", "ruby"), 1),
}

# A word before the arguments, and what joins them.
_PREFIXED = {
    **dict.fromkeys(("circa", "c.", "ca."), ("c. ", " \u2013 c. ")),
    **dict.fromkeys(("floruit", "fl."), ("fl. ", "\u2013")),
    **dict.fromkeys(("reign", "r."), ("r. ", "\u2013")),
    **dict.fromkeys(("chem", "chem2", "linktext", "not a typo", "proper name", "gaps"), ("", "")),
    **dict.fromkeys(("sortname", "sorttext"), ("", " ")),
    **dict.fromkeys(("hlist", "cslist", "flatlist"), ("", ", ")),
    **dict.fromkeys(("unbulleted list", "ubl", "ordered list", "bulleted list", "blist"), ("", "\n")),
    **dict.fromkeys(("key press", "key", "keypress"), ("", "+")),
    **dict.fromkeys(("us$", "usd", "us dollar"), ("US$", "")),
    **dict.fromkeys(("a$", "aud"), ("A$", "")),
    **dict.fromkeys(("ca$", "cad"), ("CA$", "")),
    **dict.fromkeys(("gbp", "\u00a3", "pound sterling"), ("\u00a3", "")),
    **dict.fromkeys(("eur", "\u20ac"), ("\u20ac", "")),
    **dict.fromkeys(("inr", "\u20b9", "indian rupee"), ("\u20b9", "")),
    **dict.fromkeys(("jpy", "\u00a5", "yen"), ("\u00a5", "")),
    **dict.fromkeys(("e",), ("\u00d710", "")),
    **dict.fromkeys(("10^",), ("10", "")),
    **dict.fromkeys(("sqrt", "radic"), ("\u221a", "")),
}
_SHIPS = ("USS", "HMS", "HMAS", "HMCS", "HMNZS", "RMS", "SS", "MV", "MS", "SMS", "USNS", "USCGC", "USAT", "ROKS")
_NOTES = {"sharp": "\u266f", "flat": "\u266d", "natural": "\u266e", "#": "\u266f", "b": "\u266d"}

_LANGUAGE = re.compile(r"lang-([a-z]+)(?:-[a-z0-9]+)*")
_NAMED = re.compile(r"\s*([^=\x02-\x04<>]*?)\s*=")


@dataclass(frozen=True)
class Expander:
    """A template that has a text."""

    expand: Expand
    first: tuple[str, ...] = ()  # an argument that stands in the name, as in ``{{lc:TEXT}}``

    def text(self, parts: Sequence[str], site: Site) -> str:
        """The text of the template; it touches nothing that stands beside it.

        Args:
            parts: what stands between its bars after the name.
            site: the wiki.
        """
        options: dict[str, str] = {}
        count = 0
        for part in (*self.first, *parts):
            if "=" in part and (match := _NAMED.match(part)):
                options[match[1]] = part[match.end() :].strip()
            else:
                count += 1
                options[str(count)] = part.strip()
        # ``1=`` names the first argument explicitly, which is how one that holds an equals sign is written.
        positions = sorted(int(key) for key in options if key.isdecimal() and key.isascii() and len(key) < 4)
        return f"{EDGE}{self.expand([options[str(i)] for i in positions if str(i) in options], options, site)}{EDGE}"


@lru_cache(maxsize=1 << 14)
def expander(source: str) -> Expander | None:
    """What makes the text of a template; None where it has no text.

    Args:
        source: the template's name as the page spells it.
    """
    name = folded(source.replace(EDGE, "")).removeprefix("template:")
    if name in _FIXED:
        return Expander(lambda arguments, options, site: _FIXED[name])
    if name in _SHOWN:
        return Expander(lambda arguments, options, site: _shown(arguments, options, _SHOWN[name]))
    if name in _PREFIXED:
        prefix, between = _PREFIXED[name]
        return Expander(lambda arguments, options, site: prefix + between.join(filter(None, arguments)))
    if name.upper() in _SHIPS:
        return Expander(lambda arguments, options, site: _ship([name.upper(), *arguments]))
    function, colon, _ = name.partition(":")
    if colon and function in _FUNCTIONS:
        return Expander(_FUNCTIONS[function], (source.partition(":")[2],))
    if match := _LANGUAGE.fullmatch(name):
        return Expander(lambda arguments, options, site: _language(match[1], arguments, options, site))
    return Expander(_OTHERS[name]) if name in _OTHERS else None


def _shown(arguments: Sequence[str], options: Mapping[str, str], index: int) -> str:
    if -len(arguments) <= index < len(arguments):
        return options.get("lt") or arguments[index]
    return options.get("text", options.get("quote", ""))


def _language(code: str, arguments: Sequence[str], options: Mapping[str, str], site: Site) -> str:
    """A foreign word after the name of its language, which is English and so printed in English articles alone."""
    text, script, literally = (*arguments[:3], "", "", "")[:3]
    language = LANGUAGES.get(code.partition("-")[0])
    if not language or not text or not site.is_english():
        return text
    shown = text if options.get("label") == "none" else f"{options.get('label') or language}: {text}"
    if script := options.get("translit") or script:
        shown += f", romanized: {script}"
    if literally := options.get("translation") or options.get("lit") or literally:
        shown += f", lit. &#39;{literally}&#39;"
    return shown


def _langx(arguments: Sequence[str], options: Mapping[str, str], site: Site) -> str:
    return _language(arguments[0].lower(), arguments[1:], options, site) if arguments else ""


def _several(names: Mapping[str, str]) -> Expand:
    """Words in several scripts, each after its name."""

    def expand(arguments: Sequence[str], options: Mapping[str, str], site: Site) -> str:
        found = [(label, options[key]) for key, label in names.items() if options.get(key)]
        with_labels = options.get("labels") != "no"
        return "; ".join(f"{label}: {text}" if with_labels else text for label, text in found)

    return expand


def _nihongo(arguments: Sequence[str], options: Mapping[str, str], site: Site) -> str:
    english, *japanese = arguments or [""]
    japanese = ", ".join(filter(None, japanese[:2]))
    return f"{english} ({japanese})" if english and japanese else english or japanese


def _ship(arguments: Sequence[str]) -> str:
    prefix, name, identity, form = (*arguments, "", "", "", "")[:4]
    parts = {"1": (identity,), "2": (name,), "3": (name, identity), "6": (prefix, name)}
    *words, last = parts.get(form, (prefix, name, identity))
    return " ".join(filter(None, (*words, f"({last})" if last and last == identity and words else last)))


def _class_of_ships(arguments: Sequence[str], options: Mapping[str, str], site: Site) -> str:
    name, kind = (*arguments, "", "")[:2]
    return f"{name}-class {kind}".strip()


def _verse(arguments: Sequence[str], options: Mapping[str, str], site: Site) -> str:
    old = bool(arguments) and (not arguments[0] or arguments[0].isdecimal())
    return " ".join(filter(None, arguments[: 3 if old else 2]))


def _around(before: str, after: str) -> Expand:
    return lambda arguments, options, site: f"{before}{arguments[0]}{after}" if arguments else ""


def _sic(arguments: Sequence[str], options: Mapping[str, str], site: Site) -> str:
    return " ".join([*filter(None, ["".join(arguments)]), "&#91;sic&#93;"])


def _cased(change: Callable[[str], str]) -> Expand:
    return lambda arguments, options, site: change(arguments[0]) if arguments else ""


_FUNCTIONS: dict[str, Expand] = {
    "lc": _cased(str.lower),
    "uc": _cased(str.upper),
    "lcfirst": _cased(lambda text: text[:1].lower() + text[1:]),
    "ucfirst": _cased(lambda text: text[:1].upper() + text[1:]),
    "formatnum": formatted,
}
_CHINESE = {"s": "simplified Chinese", "t": "traditional Chinese", "c": "Chinese", "p": "pinyin"}
_CHINESE |= {"w": "Wade\u2013Giles", "j": "Jyutping", "poj": "Pe\u030dh-\u014de-j\u012b", "l": "lit."}
_KOREAN = {"hangul": "Korean", "hanja": "Hanja", "rr": "RR", "mr": "MR"}
_OTHERS: dict[str, Expand] = {
    **dict.fromkeys(("convert", "cvt"), convert),
    **dict.fromkeys(("as of", "asof"), as_of),
    **dict.fromkeys(("birth date", "death date", "birth date and age", "start date", "end date"), event),
    "oldstyledate": old_style_date,
    **dict.fromkeys(("frac", "sfrac", "fraction"), fraction),
    "val": value,
    "langx": _langx,
    "zh": _several(_CHINESE),
    "korean": _several(_KOREAN),
    "nihongo": _nihongo,
    "ship": lambda arguments, options, site: _ship(arguments),
    **dict.fromkeys(("sclass", "sclass2", "sclass-"), _class_of_ships),
    **dict.fromkeys(("bibleverse", "bibleref", "bibleref2"), _verse),
    **dict.fromkeys(("angbr", "angle bracket"), _around("\u27e8", "\u27e9")),
    **dict.fromkeys(("bracket", "interp"), _around("&#91;", "&#93;")),
    "prime": _around("", "\u2032"),
    '"': _around('"', '"'),
    "music": lambda arguments, options, site: _NOTES.get(arguments[0], arguments[0]) if arguments else "",
    "sic": _sic,
}
