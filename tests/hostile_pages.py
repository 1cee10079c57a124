"""Pages of MediaWiki that are long, deep or unbalanced, and whole dumps of them.

``python -m tests.hostile_pages DIRECTORY BYTES`` writes four dumps of about so many bytes in all, for measurements.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from xml.sax.saxutils import escape

REPEATED = [
    *("* {{flagicon|X}}\n", "{{a}}, ", "{{a}};:", "({{a}}", "{{a}})", "{{a|b|c}}|", "{{{1|", "{{{", "{{a|", "{{", "}}"),
    *(
        "{{nowrap|",
        "{{nowrap|{{a}}",
        "{{" + "a" * 50,
        "{{a]]",
        "[[{{",
        "{{[[",
        "]]}}}",
        "[[",
        "]]",
        "[[a|",
        "[[File:a|",
    ),
    *("[[a|b|c]]", "[[Category:a]] ", "[[a]]]", "[a[b]]", "[http://a b ", "[//", "[http://a]", "[", "]", "{", "}", "|"),
    *(
        "<a ",
        "<b ",
        "<b   ",
        "<ref>",
        "<ref name",
        "<ref name=a/>",
        "<math",
        "<nowiki>",
        "<nowiki/>",
        "<pre>x",
        "<",
        ">",
    ),
    *(
        "<table>",
        "</table>",
        "<table><tr>",
        "<!--",
        "<!---->",
        " <!-- a -->\n",
        "<!-- a\n",
        "</ref",
        "</",
        "<br>",
        "<a>",
    ),
    *(
        "''a'''b",
        "'",
        "''",
        "'''",
        "я'",
        "= a =\n",
        "==a",
        "=",
        "= ",
        "*#:;",
        ";a:b\n",
        ":",
        "----",
        "-",
        "!a\n",
        "| a\n",
    ),
    *("{|\n", "{|\n|-\n| a\n", "|}\n", "{|", "|-\n", "&", "&amp", "&#x", "&nbsp;", "&#123;", "_", "__A_", "__NOTOC__"),
    *(
        "-{",
        "}-",
        "-{zh:a;b:",
        "-{a|b}-",
        "(",
        "( ; ",
        "()",
        " ",
        "\n",
        " \n",
        "\t",
        "\xa0",
        "x",
        "x ",
        "\n\n",
        "#REDIRECT ",
    ),
]
AROUND = {
    "[[a|": "]]",
    "[[File:a|": "]]",
    "{{a|": "}}",
    "{{nowrap|": "}}",
    "{{nowrap|a {{b}} [[c]] |": "}}",
    "{{nowrap|[[a|": "]]}}",
    "{{nowrap|[[x|{{a|": "}}]]}}",
    "{{{1|": "}}}",
    "{": "}",
    "[": "]",
    "(": ")",
    "({{a}}": "{{a}})",
    "[[a ": "]]]",
    "-{a;": "}-",
    "{|\n": "|}\n",
    "<table>": "</table>",
    "<b>": "</b>",
}


def page_of(construct: str, length: int) -> str:
    """A page of about so many characters: a construct repeated, or around long text as often as it fits."""
    if construct not in AROUND:
        return construct * (length // len(construct))
    end = AROUND[construct]
    times = length // (len(construct) + len(end)) // 2
    return construct * times + "x" * (length // 2) + end * times


CONSTRUCTS = sorted({*REPEATED, *AROUND})

_WORDS = [
    *("the", "of", "and", "in", "to", "a", "was", "is", "for", "as", "on", "with"),
    *("by", "he", "that", "which"),
]


def _article(draw: random.Random) -> str:
    """A page of a few thousand characters as most are."""
    paragraphs = []
    for _ in range(draw.randint(3, 20)):
        words = draw.choices(_WORDS, k=draw.randint(20, 120))
        words[5] = f"[[{words[6]} page|{words[7]}]]"
        words[9] = f"''{words[9]}''{{{{cite web|url=http://a.b/{draw.randint(0, 99)}|title=x}}}}"
        words[12] += f"<ref name=a>{words[13]} & {words[14]}</ref>"
        paragraphs.append(" ".join(words) + ".")
    return "\n\n".join(paragraphs) + "\n\n== End ==\n* last words\n[[Category:Pages]]"


def _table(length: int) -> str:
    """A page whose table has so many characters."""
    row = "|-\n| style=x | [[Paris|city]] || {{convert|5|km}} || 12,000\n"
    return "First words.\n{| class=wikitable\n" + row * (length // len(row)) + "|}\nLast words."


def write_dump(path: Path, num_bytes: int, table_bytes: int = 10_500_000, seed: int = 0) -> int:
    """Write a dump of about so many bytes and return the number of its pages.

    Seven pages of ten are ordinary. One in 25 of the others has 200,000 characters, the rest have 20,000. A table of
    ``table_bytes`` follows after each 50 MB, and one is in every dump.
    """
    draw = random.Random(seed)
    number = written = tables = 0
    with path.open("w", encoding="utf-8") as file:
        file.write('<mediawiki xml:lang="en"><siteinfo><dbname>enwiki</dbname></siteinfo>\n')
        while written < num_bytes:
            if written >= tables * 50_000_000:
                text = _table(table_bytes)
                tables += 1
            elif draw.random() < 0.7:
                text = _article(draw)
            else:
                construct = CONSTRUCTS[number % len(CONSTRUCTS)]
                text = page_of(construct, 200_000 if draw.random() < 0.04 else 20_000)
                text = f"First words.\n\n{text}\n\n== End ==\nLast words."
            number += 1
            page = (
                f"<page><title>Page {number}</title><ns>0</ns><id>{number}</id><revision><id>{number}</id>"
                f'<text xml:space="preserve">{escape(text)}</text></revision></page>\n'
            )
            file.write(page)
            written += len(page)
        file.write("</mediawiki>\n")
    return number


if __name__ == "__main__":
    for part in range(4):
        path = Path(sys.argv[1], f"{part}.xml")
        print(path, write_dump(path, int(sys.argv[2]) // 4, seed=part), "pages")
