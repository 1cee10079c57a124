"""Pages that are long, deep, unbalanced or random: linear work, no failure, no text lost."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.sources import wikipedia
from data_prep.sources.documents import Document, Omitted
from data_prep.sources.markup.limits import TooSlowError, cpu_seconds
from data_prep.sources.units import find_files
from data_prep.sources.wikipedia import KINDS, read_dump
from data_prep.sources.wikitext import plain_text
from tests.fuzzing import fuzzed
from tests.hostile_pages import AROUND, CONSTRUCTS, REPEATED, page_of


def steps(function: Callable[[str], str], text: str) -> int:
    """Lines of Python and characters of text that they make: work that is the same on every machine."""
    count = 0

    def trace(frame: FrameType, event: str, argument: object) -> Callable | None:
        nonlocal count
        if event == "line":
            count += 1
        elif event == "return" and isinstance(argument, str):
            count += len(argument)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function(text)
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("construct", CONSTRUCTS, ids=range(len(CONSTRUCTS)))
def test_twice_the_length_is_at_most_twice_the_work(construct: str) -> None:
    short, long = (steps(plain_text, page_of(construct, length)) for length in (8000, 16000))
    assert long <= 2.5 * short + 500  # four times, were it quadratic; runs of quotes differ a little in odd lines


def test_work_that_grows_faster_would_be_seen() -> None:
    def quadratic(text: str) -> str:
        while text:
            text = f"{text[40:]}"
            plain_text(text)
        return text

    assert steps(quadratic, "x" * 4000) > 3 * steps(quadratic, "x" * 2000)


def within_limit(text: str, seconds: float) -> str:
    with cpu_seconds(seconds):
        return plain_text(text)


def test_short_hostile_pages_end_soon() -> None:
    """What regular expressions do is not counted above, so each page has its time: a hundred times what it needs."""
    for construct in CONSTRUCTS:
        within_limit(page_of(construct, 20_000), 4)
    within_limit("<a " * 4000, 1)


@pytest.mark.slow
def test_long_hostile_pages_end_soon() -> None:
    """A quarter of a million characters: what is quadratic would take minutes."""
    for construct in CONSTRUCTS:
        within_limit(page_of(construct, 250_000), 15)


@pytest.mark.slow
def test_pairs_of_constructs_end_soon() -> None:
    for first in CONSTRUCTS[::3]:
        for second in CONSTRUCTS[::5]:
            within_limit((first + second) * 1000 + second * 500 + "]]}}" * 500, 4)


def test_a_list_page_of_dropped_templates(shared_data: Path) -> None:
    path = shared_data.parent / "cases" / "prep" / "template_list_page.xml"
    with cpu_seconds(2):
        records = [record for file in find_files([path], KINDS) for record in read_dump(file)]
    assert [record.text for record in records] == ["Intro text.\n\nEnd text."]


def test_a_page_over_the_limit_is_left_out_and_said(tmp_path: Path, monkeypatch, capsys) -> None:
    """No page is known that is slow, so a pattern that is exponential stands in for one."""
    pages = "".join(
        f"<page><title>{title}</title><id>{i}</id><revision><text>x</text></revision></page>"
        for i, title in enumerate(("Slow", "Fast"))
    )
    (tmp_path / "a.xml").write_text(f"<mediawiki>{pages}</mediawiki>")
    hard = iter(["a" * 60, "a"])
    monkeypatch.setattr(wikipedia, "plain_text", lambda text, site: str(re.match(r"(a+)+b", next(hard))))
    monkeypatch.setattr(wikipedia, "_SECONDS_PER_PAGE", 0.2)
    found = [record for file in find_files([tmp_path / "a.xml"], KINDS) for record in read_dump(file)]
    assert found == [Omitted("over the time limit"), Document("1", "None", "a.xml", "Fast")]
    assert capsys.readouterr().err == (
        f"{tmp_path / 'a.xml'}: page 1: 'Slow' takes too long to read; the page is left out\n"
    )


def test_the_limit_stops_and_restores() -> None:
    with pytest.raises(TooSlowError), cpu_seconds(0.1):
        re.match(r"(a+)+b", "a" * 60)
    with cpu_seconds(0.1):
        pass
    re.match(r"(a+)+b", "a" * 20)


# Random pages

PIECES = st.sampled_from(
    [*REPEATED, *AROUND, *AROUND.values(), "'s", "\n", " ", "word", "é", "}}}", "|", "=", "-->", "</nowiki>", "</ref>"]
)
PAGES = st.one_of(st.lists(PIECES, max_size=40).map("".join), st.text(max_size=200))


@fuzzed(600)
@given(PAGES)
def test_random_pages(page: str) -> None:
    text = within_limit(page, 10)
    assert not re.search("[\x00-\x08\r\xa0]|\n\n\n|  |^[ \t]|[ \t]$", text)
    assert text == text.strip()
    # A page of its own behind it stays whole, unless something in this one hides what follows.
    if not re.search(r"<!--|<\w|\{\{|\[\[|-\{|\{\||\[\w*:?//", page):
        assert plain_text(f"{page}\n\n== End ==\nLast words.").endswith("End\n\nLast words.")


def _visible(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Markup around text that shows it."""
    forms = [
        "''{}''",
        "'''{}'''",
        "[[a|{}]]",
        "{{{{nowrap|{}}}}}",
        "<b>{}</b>",
        "({})",
        '"{}"',
        "[http://x.y {}]",
        "a, {};",
    ]
    forms += [
        "{}<ref>hidden</ref>",
        "{}{{{{cn|hidden}}}}",
        "{}<!-- hidden -->",
        "[[File:hidden.jpg|hidden]]{}",
        "{} {}",
    ]
    forms += [
        "-{{zh:{};zh-tw:hidden}}-",
        "<span class='hidden'>{}</span>",
        "{{{{langx|de|{}}}}}",
        "<noinclude>{}</noinclude>",
    ]
    return st.builds(lambda form, one, two: form.format(one, two), st.sampled_from(forms), inner, inner)


LINES = st.builds(
    lambda form, text: form.format(text),
    st.sampled_from(
        ["{}\n", "* {}\n", "# {}\n", "== {} ==\n", "; {}: x\n", "\n{}\n", "{{|\n| hidden\n|}}\n{}\n", "! {}\n"]
    ),
    st.recursive(st.just("@"), _visible, max_leaves=6),
)


@fuzzed(600)
@given(st.lists(LINES, min_size=1, max_size=8))
def test_no_word_is_lost_and_none_comes_in(lines: list[str]) -> None:
    page, number = "", 0
    for part in re.split("(@)", "".join(lines)):
        page += f"word{number}" if part == "@" else part
        number += part == "@"
    text = plain_text(page)
    assert re.findall(r"word\d+", text) == [f"word{i}" for i in range(number)]
    assert "hidden" not in text
