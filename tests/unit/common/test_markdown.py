"""Texts of models in Markdown: nothing in them changes the layout."""

from __future__ import annotations

from bnb_ds.common.markdown import markdown_lists, markdown_table


def test_a_table_survives_its_texts():
    assert markdown_table(("a", "b"), [("x | y", "two\nlines")]) == "| a | b |\n|---|---|\n| x \\| y | two lines |"


def test_lists_survive_their_texts():
    rows = [("*a_b*\n- c", "`d`"), ("e\\", "")]
    assert markdown_lists(("source", "output"), rows) == (
        "- **source:** \\*a\\_b\\* - c\n- **output:** \\`d\\`\n\n---\n\n- **source:** e\\\\\n- **output:** "
    )
