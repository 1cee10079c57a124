"""The Slurm script for job arrays, run with the variables that Slurm sets."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from bnb_ds.data.tokenization import save_tokenizer
from tests.launching import REPOSITORY
from tests.prep_helpers import content, prep, write_corpus

pytestmark = pytest.mark.slow


def test_array(tmp_path: Path, small_texts: list[str], small_tokenizer) -> None:
    corpus = write_corpus(tmp_path / "corpus", small_texts, num_files=4)
    save_tokenizer(small_tokenizer, tmp_path / "tokenizer")
    command = ["text", "--input", str(corpus), "--tokenizer", str(tmp_path / "tokenizer"), "--part-bytes", "1"]
    script = REPOSITORY / "runs" / "slurm" / "prep.sbatch"
    array = {"SLURM_ARRAY_TASK_COUNT": "2", "SLURM_ARRAY_TASK_MIN": "1", "SLURM_CPUS_PER_TASK": "2"}
    for task in ("1", "2"):
        result = subprocess.run(
            ["bash", script, *command, "--output", str(tmp_path / "array")],
            env={**os.environ, **array, "SLURM_ARRAY_TASK_ID": task},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert result.returncode == 0, result.stderr
    prep("merge", tmp_path / "array")
    prep(*command, "--output", tmp_path / "alone")
    assert content(tmp_path / "array") == content(tmp_path / "alone")
