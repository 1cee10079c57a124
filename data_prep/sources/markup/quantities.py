"""Templates of numbers and dates as text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from data_prep.sources.markup.site import Site

_MONTHS = ("January", "February", "March", "April", "May", "June", "July")
_MONTHS += ("August", "September", "October", "November", "December")
_BETWEEN = {
    "-": "\u2013",
    "\u2013": "\u2013",
    "x": " \u00d7 ",
    **{word: f" {word} " for word in ("to", "and", "or", "by")},
}
_UNITS = {"sqmi": "sq mi", "sqft": "sq ft", "sqkm": "km2", "sqm": "m2", "cuft": "cu ft", "C": "\u00b0C", "F": "\u00b0F"}
_POWERS = {"e3": "thousand", "e6": "million", "e9": "billion", "e12": "trillion"}
_POWER = re.compile(r"(e3|e6|e9|e12)(?=\D)")
_COMPOUND = frozenset((("ft", "in"), ("mi", "yd"), ("yd", "ft"), ("lb", "oz"), ("st", "lb")))
_WHOLE_NUMBER = re.compile(r"(?<![\d.,])\d{4,}")


def convert(arguments: Sequence[str], options: Mapping[str, str], site: Site) -> str:
    """The quantity as the article gives it; what it is in other units is left out."""
    values, rest = "".join(arguments[:1]), list(arguments[1:])
    while len(rest) > 1 and rest[0] in _BETWEEN:
        values += _BETWEEN[rest[0]] + rest[1]
        rest = rest[2:]
    if not rest:
        return values
    if len(rest) > 2 and (rest[0], rest[2]) in _COMPOUND:
        return f"{values} {rest[0]} {rest[1]} {rest[2]}"
    unit = rest[0]
    if power := _POWER.match(unit):
        values, unit = f"{values} {_POWERS[power[1]]}", unit[power.end() :]
    return f"{values} {_UNITS.get(unit, unit)}"


def _date(arguments: Sequence[str], day_first: bool) -> str:
    year, month, day = (*arguments[:3], "", "", "")[:3]
    if month.isdecimal() and month.isascii() and len(month) <= 2 and 1 <= int(month) <= 12:
        month = _MONTHS[int(month) - 1]
    if not (month and day):
        return f"{month} {year}".strip()
    return f"{day} {month} {year}" if day_first else f"{month} {day}, {year}"


def event(arguments: Sequence[str], options: Mapping[str, str], site: Site) -> str:
    """The date of a birth, a death, a beginning or an end."""
    return _date(arguments, day_first=options.get("df", "") in ("y", "yes"))


def as_of(arguments: Sequence[str], options: Mapping[str, str], site: Site) -> str:
    """``As of`` a date."""
    word = "Since" if options.get("since") else "As of"
    date = _date(arguments, day_first=options.get("df", "") != "US")
    return options.get("alt") or f"{word.lower() if options.get('lc') else word} {date}"


def old_style_date(arguments: Sequence[str], options: Mapping[str, str], site: Site) -> str:
    """A date in both calendars."""
    day, year, old_day = (*arguments, "", "", "")[:3]
    return f"{day} &#91;O.S. {old_day}&#93; {year}"


def fraction(arguments: Sequence[str], options: Mapping[str, str], site: Site) -> str:
    """``1⁄2``, with a whole number before it where there is one."""
    *whole, above, below = ["1", *arguments] if len(arguments) == 1 else (arguments or ["", ""])
    return " ".join([*whole, f"{above}\u2044{below}"]) if below else ""


def value(arguments: Sequence[str], options: Mapping[str, str], site: Site) -> str:
    """A number with its uncertainty, its power of ten and its unit."""
    text = "\u00b1".join(filter(None, arguments[:2]))
    if options.get("e"):
        text += f"\u00d710{options['e'].replace('-', chr(0x2212))}"
    unit = options.get("u") or options.get("ul") or ""
    return f"{text} {unit}".strip()


def formatted(arguments: Sequence[str], options: Mapping[str, str], site: Site) -> str:
    """A number with separators of thousands, as English writes them; other wikis keep the plain digits."""
    text = "".join(arguments[:1])
    if len(arguments) > 1 or not site.is_english():
        return text
    return _WHOLE_NUMBER.sub(lambda match: f"{int(match[0]):,}" if len(match[0]) < 40 else match[0], text)
