"""Models are pushed to a stand-in of the hub, and fetched from there."""

from __future__ import annotations

import json

import huggingface_hub.constants
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from bnb_ds.cli import main
from bnb_ds.errors import CheckpointError
from bnb_ds.export.publish import complete_card
from bnb_ds.generate.pipeline import BnbPipeline
from bnb_ds.hf.model_code import CODE_FILE
from tests.exports import save_model
from tests.hub import TOKEN, Hub

CARD = """---
library_name: transformers
pipeline_tag: summarization
---
# XSum

pipeline = BnbPipeline.from_pretrained(".")
"""


@pytest.fixture
def hub(monkeypatch, tmp_path):
    server = Hub()
    constants = huggingface_hub.constants
    for name, value in {
        "ENDPOINT": server.address,
        "HUGGINGFACE_CO_URL_TEMPLATE": server.address + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "HF_TOKEN_PATH": str(tmp_path / "token"),
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr("transformers.utils.hub.is_offline_mode", lambda: False, raising=False)
    monkeypatch.setattr("transformers.utils.hub._hf_api", None, raising=False)  # it keeps the address of its first use
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield server
    server.close()


@pytest.fixture
def model(small_tokenizer, tmp_path):
    directory = save_model(tmp_path / "model", small_tokenizer)
    (directory / "README.md").write_text(CARD)
    (directory / "recipe.yaml").write_text(yaml.safe_dump({"data": {"train": "/home/me/train.jsonl"}}))
    evaluation = directory / "evaluation" / "xsum-test"
    evaluation.mkdir(parents=True)
    found = {"task": "xsum", "split": "test", "scores": {"rougeL": 21.25, "loss": 2.0, "rouge1": None}}
    (evaluation / "eval_results.json").write_text(json.dumps(found))
    return directory


def files(directory):
    return {path.relative_to(directory): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_push_and_use(hub, model, capsys):
    before = files(model)
    options = ["--license", "apache-2.0", "--language", "en", "--private", "--message", "First"]
    assert main(["push", str(model), "somebody/bnb-xsum", *options]) == 0
    assert (
        capsys.readouterr().out
        == f"push: {model} -> {hub.address}/somebody/bnb-xsum/commit/{hub.repositories['somebody/bnb-xsum'].oid}\n"
    )
    assert files(model) == before
    pushed = hub.repositories["somebody/bnb-xsum"]
    assert (pushed.private, pushed.commits) == (True, ["First"])
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md", CODE_FILE} <= set(pushed.files)
    assert not [name for name in pushed.files if name.startswith("evaluation")]
    assert yaml.safe_load(pushed.files["recipe.yaml"]) == {"data": {"train": "train.jsonl"}}
    card = ModelCard(pushed.files["README.md"].decode())
    assert (card.data.license, card.data.language, card.data.pipeline_tag) == ("apache-2.0", ["en"], "summarization")
    (result,) = card.data.eval_results
    assert (result.metric_name, result.metric_value, result.dataset_split) == ("rougeL", 21.25, "test")
    assert 'from_pretrained("somebody/bnb-xsum")' in card.content

    fetched = BnbPipeline.from_pretrained("somebody/bnb-xsum", device="cpu")
    assert fetched(["a text of it"]) == BnbPipeline.from_pretrained(model, device="cpu")(["a text of it"])
    # A second push is one more commit of the same repository.
    assert main(["push", str(model), "somebody/bnb-xsum", "--license", "mit"]) == 0
    assert pushed.commits == ["First", "Upload with bnb-ds push"]


def test_transformers_own_push(hub, model):
    known = AutoModelForSeq2SeqLM.from_pretrained(model)
    known.push_to_hub("somebody/again")
    AutoTokenizer.from_pretrained(model).push_to_hub("somebody/again")
    assert {"config.json", "model.safetensors", CODE_FILE, "tokenizer.json"} <= set(
        hub.repositories["somebody/again"].files
    )
    fetched = AutoModelForSeq2SeqLM.from_pretrained("somebody/again")
    ids = torch.tensor([[2, 40, 41, 3]])
    assert torch.equal(fetched.generate(ids), known.generate(ids))


def refused(capsys, *arguments) -> str:
    assert main(["push", *map(str, arguments)]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    return message


def test_what_is_refused(hub, model, tmp_path, capsys, monkeypatch):
    assert "README.md: names no licence, without which nobody may use the model: give --license" in refused(
        capsys, model, "a/b"
    )
    (tmp_path / "a run").mkdir()
    (tmp_path / "a run" / "config.resolved.yaml").touch()
    assert f"{tmp_path}/a run: is a run; write its model with `bnb-ds export '{tmp_path}/a run' NEW`" in refused(
        capsys, tmp_path / "a run", "a/b", "--license", "mit"
    )
    assert "not a model directory; give one that `bnb-ds export` wrote" in refused(capsys, tmp_path, "a/b")
    assert "a b: the hub does not take it: " in refused(capsys, model, "a b", "--license", "mit")
    assert '"license" must be one of [apache-2.0, mit]; check the name' in refused(
        capsys, model, "a/b", "--license", "free"
    )
    hub.repositories.clear()
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    message = refused(capsys, model, "a/b", "--license", "mit")
    assert "a/b: the hub does not take it: Invalid username or password; check the name, the connection and" in message
    assert hub.repositories == {}
    for file, content, reason in (
        ("recipe.yaml", "[", "is not a recipe of fine-tuning"),
        ("evaluation/xsum-test/eval_results.json", '{"task": "xsum"}', "cannot be read"),
    ):
        (model / file).write_text(content)
        assert f"{model / file}: {reason} (" in refused(capsys, model, "a/b", "--license", "mit")
    (model / "README.md").write_text("---\n[\n---\n")
    assert "mend the block at its head" in refused(capsys, model, "a/b", "--license", "mit")


def test_without_a_connection(hub, model, capsys):
    hub.close()
    assert "a/b: the hub does not take it: " in refused(capsys, model, "a/b", "--license", "mit")
    with pytest.raises(CheckpointError, match="nobody/nothing: is no directory here, and the hub does not give it: "):
        BnbPipeline.from_pretrained("nobody/nothing")


@pytest.mark.parametrize(
    "condition",
    [
        {"oracle_length": True},
        {"decoding": {"refinement": 0}},
        {"data_overrides": ["data.max_test_samples=3"]},
        {"rows": ["3 rows read, 3 kept, 0 left out (ends at data.max_test_samples 3)"]},
    ],
)
def test_scores_that_no_user_has_or_of_a_part_of_the_data_are_not_published(model, condition):
    def card():
        return complete_card(model, "a/b", license="mit", languages=())

    honest = card()
    assert "21.25" in honest
    place = model / "evaluation" / "xsum-test-other"
    place.mkdir()
    found = {"task": "xsum", "split": "test", "scores": {"rougeL": 99.0}}
    (place / "eval_results.json").write_text(json.dumps(found | condition))
    assert card() == honest
    (place / "eval_results.json").write_text(json.dumps(found))
    assert card() != honest


@pytest.mark.parametrize(
    ("record", "data", "expected"),
    [
        ({}, {"train": "/home/me/train.jsonl"}, "xsum"),  # of an older release: the recipe says it
        ({}, {"train": None}, "EdinburghNLP/xsum"),
        ({}, None, "xsum"),  # nobody knows
        ({"hub": None}, {"train": None}, "xsum"),  # scored on other data than the recipe's
        ({"hub": "EdinburghNLP/xsum"}, {"train": "/home/me/train.jsonl"}, "EdinburghNLP/xsum"),
        ({"hub": "/home/me/mirror"}, {"train": None}, "xsum"),
    ],
)
def test_scores_stand_beside_the_data_that_they_are_of(model, record, data, expected):
    if data is None:
        (model / "recipe.yaml").unlink()
    else:
        (model / "recipe.yaml").write_text(yaml.safe_dump({"data": data}))
    found = {"task": "xsum", "split": "test", "scores": {"rougeL": 21.25}, **record}
    (model / "evaluation" / "xsum-test" / "eval_results.json").write_text(json.dumps(found))
    (result,) = ModelCard(complete_card(model, "a/b", license="mit", languages=())).data.eval_results
    assert result.dataset_type == expected
