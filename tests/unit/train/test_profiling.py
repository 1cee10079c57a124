from __future__ import annotations

import gzip
import json

import pytest
import torch

from bnb_ds.errors import ConfigError
from bnb_ds.train.profiling import StepProfiler, parse_range


def test_the_range():
    assert parse_range("3:7") == (3, 7)


@pytest.mark.parametrize("text", ["3", "7:3", "0:1", "a:b", "-1:2", "3:"])
def test_a_bad_range(text):
    with pytest.raises(ConfigError, match="write it as FIRST:LAST, for example 100:104"):
        parse_range(text)


def test_only_the_steps_of_the_range_are_traced(tmp_path):
    said: list[str] = []
    profiler = StepProfiler(2, 3, tmp_path / "profile", said.append)
    operations = {1: torch.sin, 2: torch.cos, 3: torch.tan, 4: torch.exp}
    for step, operation in operations.items():
        with profiler(step):
            operation(torch.ones(3))
    trace = tmp_path / "profile" / "steps_2_3.json.gz"
    assert said == [f"trace        {trace}"]
    names = {event.get("name") for event in json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]}
    assert {"aten::cos", "aten::tan"} <= names
    assert not {"aten::sin", "aten::exp"} & names


def test_a_run_that_ends_early_keeps_its_trace(tmp_path):
    profiler = StepProfiler(1, 9, tmp_path, print)
    with profiler(1):
        torch.ones(3).cos()
    profiler.close()
    assert (tmp_path / "steps_1_9.json.gz").exists()
