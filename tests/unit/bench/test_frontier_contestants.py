"""How a system of `bnb-ds bench frontier` is written, and what is said of one that cannot be read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bnb_ds.bench.frontier.contestants import Contestant, read_contestant
from bnb_ds.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("work/a", Contestant("a", (Path("work/a"),))),
        ("work/a/best", Contestant("a", (Path("work/a/best"),))),
        ("A, b=x,y", Contestant("A, b", (Path("x"), Path("y")))),
        ("x:strategy=greedy", Contestant("x", (Path("x"),), {"strategy": "greedy"})),
        (
            "A=x:lm_weight=0.3,merge_duplicates=false",
            Contestant("A", (Path("x"),), {"lm_weight": 0.3, "merge_duplicates": False}),
        ),
    ],
)
def test_how_a_system_is_written(text, expected):
    assert read_contestant(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lr=1", Contestant("lr=1", (Path("lr=1"),))),
        ("A=lr=1,lr=2", Contestant("A", (Path("lr=1"), Path("lr=2")))),
        ("lr=1,lr=2:refinement=1", Contestant("lr=1", (Path("lr=1"), Path("lr=2")), {"refinement": 1})),
        ("A=x:beta=1/a,b:beam_size=4", Contestant("A", (Path("x:beta=1/a,b"),), {"beam_size": 4})),
        ("A=lr=3/none", Contestant("A", (Path("lr=3/none"),))),
    ],
)
def test_paths_may_hold_the_signs_of_a_system(tmp_path, monkeypatch, text, expected):
    for name in ("lr=1", "lr=2", "x:beta=1/a,b"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert read_contestant(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("A=x:refinement=[", "A=x:refinement=[: refinement=[: the value is not valid YAML; quote it"),
        ("A=x:length_beam={a: b", "length_beam={a: b: the value is not valid YAML; quote it"),
        ("A=x:refinement=2020-13-45", "refinement=2020-13-45: the value is not valid YAML; quote it"),
        ("A=x:beam_size=!!bool 4", "beam_size=!!bool 4: the value is not valid YAML; quote it"),
        ("A=x:beam_size={}", "beam_size={} is neither a word nor a number; give one, in quotes if it must be"),
        ("A=x:lm=2020-11-05", "lm=2020-11-05 is neither a word nor a number; give one, in quotes if it must be"),
        ("A=x:refinement=1,refinement=2", "A=x:refinement=1,refinement=2: refinement is given twice; keep one"),
        (
            "A:refinment=x",
            "A:refinment=x: 'refinment' is no setting of decoding, and a name holds no ':'; did you mean 'refinement'?",
        ),
        ("A: b=x", "A: b=x: write a system as MODEL, or as NAME=MODEL,MODEL:KEY=VALUE,KEY=VALUE, with neither ':' nor"),
    ],
)
def test_a_system_that_cannot_be_read_is_told(text, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        read_contestant(text)
