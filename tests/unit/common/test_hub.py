"""What is said of a directory that is given in the place of a model."""

from __future__ import annotations

import pytest

from bnb_ds.common.hub import checkpoint_errors, export_hint
from bnb_ds.errors import CheckpointError


@pytest.mark.parametrize(
    ("content", "kind"),
    [("config.resolved.yaml", "the output_dir of a run"), ("checkpoint.json", "a checkpoint of a run")],
)
def test_a_run_in_the_place_of_a_checkpoint_to_start_from(content, kind, tmp_path):
    (tmp_path / content).touch()
    said = f"^{tmp_path}: is {kind}, not a model; make one with `bnb-ds export {tmp_path} NEW`, and give NEW$"
    with pytest.raises(CheckpointError, match=said), checkpoint_errors(str(tmp_path), "BERT checkpoint"):
        raise OSError("no file named config.json")


def test_the_command_that_is_advised_holds_a_path_with_spaces(tmp_path):
    run = tmp_path / "my run"
    run.mkdir()
    (run / "config.resolved.yaml").touch()
    assert f"`bnb-ds export '{run}' NEW`" in str(export_hint(run))


@pytest.mark.parametrize("name", ["org/model", "x" * 5000, "a\0b"])
def test_other_names_keep_their_error(name):
    with (
        pytest.raises(CheckpointError, match="cannot be read as a BERT checkpoint: gone; restore it, or name another"),
        checkpoint_errors(name, "BERT checkpoint"),
    ):
        raise OSError("gone")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("Check of 'hidden_size':\n    a text\nmore"), "Check of 'hidden_size': a text;"),
        (ValueError("12 weights differ\nmore"), "12 weights differ;"),
        (KeyError("gelu_nwe"), "unknown or missing 'gelu_nwe';"),
        (EOFError(), "EOFError;"),
    ],
)
def test_the_reason_is_one_line_that_names_the_field(error, reason):
    with (
        pytest.raises(CheckpointError, match=f"^org/model: cannot be read as a model: {reason} restore it, or name"),
        checkpoint_errors("org/model", "model"),
    ):
        raise error
