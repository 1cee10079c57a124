"""Scores of the paper's rows that were measured here."""

from __future__ import annotations

import json
from pathlib import Path

from bnb_ds.errors import DataError
from bnb_ds.reproduce.paper_rows import Row


def measured(row: Row, runs: Path) -> dict[str, tuple[str, dict[str, float | None]]]:
    """Split -> main score and all scores, of every evaluation of a row's run.

    Raises:
        DataError: a results file cannot be read.
    """
    found = {}
    for path in sorted((runs / row.output_dir).glob("best/evaluation/*/eval_results.json")):
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            main, scores = values["main_score"], dict(values["scores"])
            if main not in scores:
                raise KeyError(main)
            # With the references' lengths, or decoded otherwise than the model was saved, it is not the row's result.
            if values["task"] == row.task and not values.get("oracle_length") and not values.get("decoding"):
                found[values["split"]] = main, scores
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}: cannot be read as results ({error}); run bnb-ds evaluate again") from None
    return found
