"""Templates that are part of a sentence, as text: quantities, dates, foreign words, dashes, quotations.

Most templates are boxes, notices and references, which running prose does without; so a template says nothing unless
its name is in one of the tables here. They hold what is common in English articles and does the same in every one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from data_prep.sources.languages import LANGUAGES

Expand = Callable[[Sequence[str], Mapping[str, str]], str]

# What stands for itself.
_FIXED = {
    **dict.fromkeys(("ndash", "en dash"), "\u2013"),
    **dict.fromkeys(("mdash", "em dash", "mdashb"), "\u2014"),
    **dict.fromkeys(("spaced ndash", "snd", "snds", "spnd", "spaced en dash"), " \u2013 "),
    **dict.fromkeys(("nbsp", "spaces", "space", "thinsp", "thin space", "hairsp"), " "),
    **dict.fromkeys(("\u00b7", "middot", "dot"), " \u00b7 "),
    **dict.fromkeys(("okina", "ayin"), "\u02bb"),
    "'s": "'s",
    "'": "'",
    "' \"": "' \"",
    "\" '": "\" '",
    "pi": "\u03c0",
}

# Which of the arguments readers see, counted from the end where negative.
_SHOWN = {
    **dict.fromkeys(("lang", "transl", "transliteration", "rtl-lang", "script"), -1),
    **dict.fromkeys(("nowrap", "nobr", "small", "smaller", "big", "sc", "smallcaps", "abbr", "tooltip"), 0),
    **dict.fromkeys(("em", "strong", "italics", "plainlist", "visible anchor", "vanchor", "ill", "not a typo"), 0),
    **dict.fromkeys(("quote", "cquote", "bquote", "blockquote", "quotation"), 0),
    **dict.fromkeys(("math", "mvar", "val", "sup", "sub", "linktext", "ipa", "flag", "flagcountry"), 0),
}

# A word before the arguments, and what joins them.
_PREFIXED = {
    **dict.fromkeys(("circa", "c."), ("c. ", " \u2013 c. ")),
    **dict.fromkeys(("floruit", "fl."), ("fl. ", "\u2013")),
    "reign": ("r. ", "\u2013"),
    **dict.fromkeys(("chem", "chem2"), ("", "")),
    "hlist": ("", ", "),
    **dict.fromkeys(("unbulleted list", "ubl", "ordered list"), ("", "\n")),
}

_LANGUAGE = re.compile(r"lang-([a-z]+)(?:-[a-z]+)*")
_MONTHS = ("January", "February", "March", "April", "May", "June", "July")
_MONTHS += ("August", "September", "October", "November", "December")
_BETWEEN = {
    "-": "\u2013",
    "\u2013": "\u2013",
    "x": " \u00d7 ",
    **{word: f" {word} " for word in ("to", "and", "or", "by")},
}
_UNITS = {"sqmi": "sq mi", "sqft": "sq ft", "sqkm": "km2", "sqm": "m2", "cuft": "cu ft", "C": "\u00b0C", "F": "\u00b0F"}
_COMPOUND = frozenset((("ft", "in"), ("mi", "yd"), ("yd", "ft"), ("lb", "oz"), ("st", "lb")))


def expander(name: str) -> Expand | None:
    """What makes the text of a template from its arguments by position and by name; None where it has no text.

    Args:
        name: in lower case, with single spaces.
    """
    if name in _FIXED:
        return lambda arguments, options: _FIXED[name]
    if name in _SHOWN:
        return lambda arguments, options: _shown(arguments, options, _SHOWN[name])
    if name in _PREFIXED:
        prefix, between = _PREFIXED[name]
        return lambda arguments, options: prefix + between.join(filter(None, arguments))
    if name.startswith("formatnum:"):
        return lambda arguments, options: name.partition(":")[2]
    if match := _LANGUAGE.fullmatch(name):
        return lambda arguments, options: _language(arguments, match[1])
    return _OTHERS.get(name)


def _shown(arguments: Sequence[str], options: Mapping[str, str], index: int) -> str:
    return arguments[index] if arguments else options.get("text", options.get("quote", ""))


def _language(arguments: Sequence[str], code: str) -> str:
    language = LANGUAGES.get(code)
    return f"{language}: {arguments[0]}" if language and arguments else "".join(arguments[:1])


def _convert(arguments: Sequence[str], options: Mapping[str, str]) -> str:
    """The quantity as the article gives it; what it is in other units is left out."""
    values, rest = "".join(arguments[:1]), list(arguments[1:])
    while len(rest) > 1 and rest[0] in _BETWEEN:
        values += _BETWEEN[rest[0]] + rest[1]
        rest = rest[2:]
    if not rest:
        return values
    if len(rest) > 2 and (rest[0], rest[2]) in _COMPOUND:
        return f"{values} {rest[0]} {rest[1]} {rest[2]}"
    return f"{values} {_UNITS.get(rest[0], rest[0])}"


def _date(arguments: Sequence[str], day_first: bool) -> str:
    year, month, day = (*arguments[:3], "", "", "")[:3]
    if month.isdecimal() and 1 <= int(month) <= 12:
        month = _MONTHS[int(month) - 1]
    if not (month and day):
        return f"{month} {year}".strip()
    return f"{day} {month} {year}" if day_first else f"{month} {day}, {year}"


def _event(arguments: Sequence[str], options: Mapping[str, str]) -> str:
    return _date(arguments, day_first=options.get("df", "") in ("y", "yes"))


def _as_of(arguments: Sequence[str], options: Mapping[str, str]) -> str:
    word = "Since" if options.get("since") else "As of"
    date = _date(arguments, day_first=options.get("df", "") != "US")
    return options.get("alt") or f"{word.lower() if options.get('lc') else word} {date}"


def _old_style_date(arguments: Sequence[str], options: Mapping[str, str]) -> str:
    day, year, old_day = (*arguments, "", "", "")[:3]
    return f"{day} [O.S. {old_day}] {year}"


def _fraction(arguments: Sequence[str], options: Mapping[str, str]) -> str:
    *whole, above, below = ["1", *arguments] if len(arguments) == 1 else (arguments or ["", ""])
    return " ".join([*whole, f"{above}\u2044{below}"]) if below else ""


def _nihongo(arguments: Sequence[str], options: Mapping[str, str]) -> str:
    english, *japanese = arguments or [""]
    japanese = ", ".join(filter(None, japanese[:2]))
    return f"{english} ({japanese})" if english and japanese else english or japanese


def _bracketed(arguments: Sequence[str], options: Mapping[str, str]) -> str:
    return f"\u27e8{arguments[0]}\u27e9" if arguments else ""


def _sic(arguments: Sequence[str], options: Mapping[str, str]) -> str:
    return " ".join([*filter(None, ["".join(arguments)]), "[sic]"])


_OTHERS: dict[str, Expand] = {
    **dict.fromkeys(("convert", "cvt"), _convert),
    **dict.fromkeys(("as of", "asof"), _as_of),
    **dict.fromkeys(("birth date", "death date", "birth date and age", "start date", "end date"), _event),
    "oldstyledate": _old_style_date,
    **dict.fromkeys(("frac", "sfrac", "fraction"), _fraction),
    "nihongo": _nihongo,
    **dict.fromkeys(("angbr", "angle bracket"), _bracketed),
    "sic": _sic,
}
