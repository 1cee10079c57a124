"""Wikitext as its readers see it: what is markup, what is text, and which wiki says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_prep.sources.markup.lines import without_quotes
from data_prep.sources.markup.site import ANY_WIKI, site_of
from data_prep.sources.wikitext import plain_text

QUOTES = {
    "''Time'''s": "Time's",
    "''Time''{{'s}} ''Time''<nowiki/>'s ''Time''&#39;s": "Time's Time's Time's",
    "L'''amour'' is '''bold'''": "L'amour is bold",
    "L'''amour'' and '''it": "Lamour and it",  # two marks of bold text: none is an apostrophe
    "'''''both''''' ''''four'''' ''''''six'''''": "both 'four' 'six",
    "a '''b ''c d": "a 'b c d",
    "''Time\n's'' 'x'": "Time\n's 'x'",
    "[[Time|''Time'']]'s [[Time|Time]]'s '[[Time]]'": "Time's Time's 'Time'",
    "{{nowrap|''Time''}}'s [http://x ''Time'']'s": "Time's Time's",
    "''Time''[[File:a.jpg|thumb|b]]'s ''Time''<ref>x</ref>'s": "Time's Time's",
}
TEXT = {
    # names that look like prefixes
    "[[CSI: Miami]], [[CSI: NY|NY]], [[Alien: Covenant]], [[2001: A Space Odyssey]]": (
        "CSI: Miami, NY, Alien: Covenant, 2001: A Space Odyssey"
    ),
    "[[:Category:X]] [[:File:x.jpg]] [[:fr:Lien]] [[wikt:word]] [[wikt:word|w]] [[Media:a.ogg|hear]]": (
        "Category:X File:x.jpg fr:Lien wikt:word w hear"
    ),
    # beginnings of lines
    "Intro.\n\n!Kung live there.\n\n!Xóõ too.": "Intro.\n\n!Kung live there.\n\n!Xóõ too.",
    "|x| is a value.": "|x| is a value.",
    "[[x|* y]] and\n[[x|#1]], [[x|= z =]]\n{{nowrap|: w}}": "* y and\n#1, = z =\n: w",
    ";Term: text\n:: more\n*# entry\n: \n----\nnext": "Term: text\nmore\nentry\n\nnext",
    # what looks like tags, entities, switches and code
    "std::vector&lt;int&gt;, x<y and z>w, <stdio.h>, <int>": "std::vector<int>, x<y and z>w, <stdio.h>, <int>",
    "&amp;lt; &amp;nbsp; &bogus; &copy &#0; &#150; AT&T": "&lt; &nbsp; &bogus; &copy &#0; \u2013 AT&T",
    "__FILE__ __init__ __index__ a__NOTOC__b": "__FILE__ __init__ __index__ ab",
    "f() g( ) a[] a[i[0]] (...) [ ] {} :) ;) (: x": "f() g( ) a[] a[i[0]] (...) [ ] {} :) ;) (: x",
    "Il dit : non ! Vraiment ?": "Il dit : non ! Vraiment ?",
    # what is protected
    "<nowiki>{{a}} [[b|c]] ''d'' <b> * &lt; &#39;</nowiki>": "{{a}} [[b|c]] ''d'' <b> * < '",
    "<nowiki>\n* a\n== b ==\n{|</nowiki>": "* a\n== b ==\n{|",
    "{{nowrap|<nowiki>|=}}</nowiki>}}": "|=}}",
    "<pre>int a[] = {{1}};\n== x ==</pre>": "int a[] = {{1}};\n== x ==",
    "1 {{=}} 1, {{!}}x{{!}}, {{((}}a{{))}}": "1 = 1, |x|, {{a}}",
    # what articles share with templates
    "<noinclude>One.</noinclude><includeonly>No.</includeonly> <onlyinclude>Two.</onlyinclude>": "One. Two.",
    "{{{1|shown}}} {{{1}}}": "shown",
}
DROPPED = {
    "A ({{x}}; b), c, {{x}}; d [{{x}}] ({{x}}, {{x}}) e {{x}} , f{{x}}.": "A (b), c; d e, f.",
    "{{x}}, start (a, {{x}}) mot{{x}} : suite": "start (a) mot : suite",
    "(born 1900) (IPA: {{x}}; y) (; ) (; z) ({{x}}; ) is {{x}}.": "(born 1900) (IPA; y) (; ) (z) is.",
    "a{{x}}-{{x}}b c {{x}} \u2013 {{x}} d e{{x}}, {{x}}, f": "a-b c \u2013 d e, f",
    "((a {{x}})) ((({{x}}))) z": "((a)) z",
    "1990{{ref}}, {{ref}} 1991 [[Category:A]]": "1990, 1991",
    "a<!-- b -->c\n<!-- d -->\n<!-- e --> \nf <!-- unclosed": "ac\nf",
    "[[File:a.jpg|thumb|[[b|c]] {{d|[[e]]}} [http://f g]]]h": "h",
    "{{a|{{b|{{c}}|[[d|e]]}}|<nowiki>}}</nowiki>|{{{f|{{g}}}}}}}h": "h",
    "{|\n|a\n{|\n|b\n|}\n|}c\n: {| x\n|}": "c",
    "before\n{|\n| a\n! b\nprose\n== Head ==\n|y| after": "before\nprose\n\nHead\n\n|y| after",
    "{{election begin}}\n|-\n| a || b\n|}\nafter": "after",
    "{{Infobox\n| name = x\n| other = y\nText.": "Text.",
    "<table><tr><td>a<table></table></td></tr></table>b <table> c": "b\nc",
    "<ref name=a>{{b}}</ref >c<ref name='d'/>e<REF>f</REF><references/>": "ce",
    "<ref>never closed, [[a|so]] shown": "never closed, so shown",
    "a]] b}} c [[ d {{ e": "a b c d e",
    "[[fr:Lien]][[zh-min-nan:x]][[simple:x]][[be-x-old:y|z]]": "",
    "a [http://b] [http://c d] [e] [//f g] [h http://i] http://j": "a d [e] g [h http://i] http://j",
}
VARIANTS = {
    "-{zh-hans:计算机;zh-hant:電腦}-是": "计算机是",
    "-{zh:one; two;zh-tw:three}-": "one; two",
    "-{zh-cn:a; zh-tw:b;}--{A|zh-cn:c;zh-tw:d}--{H|zh-cn:e;zh-tw:f}--{R|g}--{h}-": "acgh",
    "-{zh-hans:-{zh-hans:x;zh-hant:y}-;zh-hant:z}- a-{b": "x a-{b",
}
TEMPLATES = {
    "({{langx|de|München}}), {{langx|el|Αθήνα|Athína|wisdom}}, {{lang-la|x|label=none}}": (
        "(German: München), Greek: Αθήνα, romanized: Athína, lit. 'wisdom', x"
    ),
    "{{w|Title}} {{w|Title|text}} {{ill|a|de|b}} {{ill|a|de|lt=c}}": "Title text a c",
    "{{USS|Ohio|SSBN-726|6}}, {{HMS|Hood|51}}, {{HMS|Hood|51|2}}, {{sclass|Nimitz|carrier}}": (
        "USS Ohio, HMS Hood (51), Hood, Nimitz-class carrier"
    ),
    "{{zh|s=汉语|p=Hànyǔ}}; {{zh|c=字|labels=no}}": "simplified Chinese: 汉语; pinyin: Hànyǔ; 字",
    "{{US$|5}} {{e|6}} {{val|1.6|0.1|e=-19|u=C}} {{formatnum:12345.67}} {{formatnum:1,2|R}}": (
        "US$5 \u00d7106 1.6\u00b10.1\u00d710\u221219 C 12,345.67 1,2"
    ),
    "{{convert|3|e6acre}}, {{convert|1|to|2|e3sqmi}}": "3 million acre, 1 to 2 thousand sq mi",
    "{{lc:ABC}} {{ucfirst:abc}} {{template:nowrap|x}} {{music|sharp}} {{bibleverse||John|3:16|KJV}}": (
        "abc Abc x \u266f John 3:16"
    ),
}
CASES = {**QUOTES, **TEXT, **DROPPED, **VARIANTS, **TEMPLATES}


@pytest.mark.parametrize("wikitext", CASES, ids=range(len(CASES)))
def test_what_readers_see(wikitext: str) -> None:
    assert plain_text(wikitext) == CASES[wikitext]


def test_cases_beside_the_checkout(shared_data: Path) -> None:
    cases = json.loads((shared_data.parent / "cases" / "prep" / "wikitext.json").read_text(encoding="utf-8"))
    found = {name: plain_text(case["wikitext"]) for name, case in cases.items()}
    assert found == {name: case["expected"] for name, case in cases.items()}


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("''a", "a"),
        ("'''a''b", "'ab"),  # one mark of each kind: the bold one is an apostrophe
        ("x '''a''b'''c", "x abc"),
        ("l'''a ''b '''c '''d", "l'a b c d"),  # behind a single letter, before behind a word or a space
        ("no '''a ''b", "no 'a b"),
    ],
)
def test_runs_of_quotes_in_a_line(line: str, text: str) -> None:
    assert without_quotes(line) == text


def test_names_of_the_wiki() -> None:
    german = site_of({"6": "Datei", "14": "Kategorie", "-2": "Medium", "4": "Wikipedia", "100": "Fr"}, "de")
    page = "[[Bild:a.jpg|mini]][[Datei:a.jpg]][[Image:a]][[Kategorie:b]][[Category:b]][[Medium:a]]"
    assert plain_text(page, german) == ""
    assert plain_text("[[Fichier:a|b]] [[Fr:c]]", german) == "b Fr:c"  # not a file, not a language: a namespace
    assert plain_text("[[Fichier:a|b]][[Файл:a|мини]][[DATEI_:a|b]][[ bild : a]][[画像:b]]", ANY_WIKI) == ""
    assert plain_text("{{langx|fr|Été}} {{lang-en|x}} {{formatnum:1234}}", german) == "Été x 1234"


def test_characters_of_the_passes_cannot_be_smuggled_in() -> None:
    assert plain_text("a\x00\x01\x02\x03\x04\x08b\r\nc\rd &#2;&#x3;") == "ab\nc\nd &#2;&#x3;"
