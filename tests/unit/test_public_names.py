"""Names that users import go on working, and importing the light ones stays cheap."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]

PUBLIC = {
    "bnb_ds": "BnbConfig BnbForConditionalGeneration BnbForSequenceClassification BnbEncoderModel BnbModel BnbPipeline"
    " distributed __version__",
    "bnb_ds.modeling": "BnbConfig BnbForConditionalGeneration BnbForPretraining BnbModel BnbModelOutput BnbOutput"
    " decoder_lengths",
    "bnb_ds.ctc": "CtcOutput linear_ctc_loss ctc_loss linear_argmax linear_best collapse",
    "bnb_ds.dag": "linear_dag_loss DagOutput dag_best_path dag_decode DagOptions",
    "bnb_ds.shards": "TokenShards ShardWriter Manifest TokenizerInfo read_manifest",
    "bnb_ds.decoding": "generate generate_rows DecodeOptions GenerateOutput",
    "bnb_ds.distributed": "rank local_rank world_size is_main barrier init",
    "bnb_ds.tasks": "get_task Task TASKS HubData",
    "bnb_ds.loggers": "Logger RunInfo Outcome",
}


@pytest.mark.parametrize("module", PUBLIC)
def test_every_public_name_is_there(module):
    for name in PUBLIC[module].split():
        if not hasattr(importlib.import_module(module), name):
            importlib.import_module(f"{module}.{name}")  # a folder


def test_the_page_of_the_api_lists_exactly_the_public_names():
    page = (REPOSITORY / "docs" / "api.md").read_text(encoding="utf-8")
    listed: dict[str, list[str]] = {}
    for module, names in re.findall(r"`from ([\w.]+) import ([\w, ]+)`", page):
        listed.setdefault(module, []).extend(names.split(", "))
    assert {module: sorted(names) for module, names in listed.items()} == {
        module: sorted(names.split()) for module, names in PUBLIC.items()
    }


def test_an_unknown_name_of_the_root_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"module 'bnb_ds' has no attribute 'BnbForEverything'"):
        importlib.import_module("bnb_ds").BnbForEverything  # noqa: B018


def loaded_by(code: str) -> set[str]:
    """The packages that a new process has loaded after some code."""
    script = f"import sys\n{code}\nprint(*{{name.split('.')[0] for name in sys.modules}}, file=sys.stderr)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(result.stderr.split())


@pytest.mark.parametrize(
    "code",
    [
        "import bnb_ds",
        "import bnb_ds.shards",
        "from bnb_ds.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass",
        "from bnb_ds.cli import main\ntry: main(['--version'])\nexcept SystemExit: pass",
    ],
    ids=["root", "shards", "help", "version"],
)
def test_light_imports_stay_light(code):
    assert not loaded_by(code) & {"torch", "transformers", "deepspeed", "datasets"}


@pytest.mark.slow
def test_transformers_knows_the_models_after_the_root_alone():
    """`import bnb_ds` is all that a user of transformers' auto classes writes."""
    code = """
import bnb_ds
from transformers import AutoConfig, AutoModelForSeq2SeqLM
try: AutoConfig.from_pretrained("no/such/directory/anywhere", local_files_only=True)
except Exception: pass
assert AutoConfig.for_model("bnb").model_type == "bnb"
assert "BnbForConditionalGeneration" in str(AutoModelForSeq2SeqLM._model_mapping._extra_content)
"""
    assert "torch" in loaded_by(code)
