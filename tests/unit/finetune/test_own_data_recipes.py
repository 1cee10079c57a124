"""Every recipe of docs/own_data.md is whole: it is planned as it stands, on the rows that the page shows."""

from __future__ import annotations

import json
import re

import pytest
import yaml
from transformers import BertConfig, BertModel

from bnb_ds.commands.launch_check import check
from bnb_ds.finetune import plan as finetune
from bnb_ds.pretrain import plan as pretrain
from tests import documents
from tests.launching import REPOSITORY

PAGE = documents.text("docs/own_data.md")
FILES = dict(re.findall(r"`(work/data/[\w.]+)`:\n\n```\w+\n(.*?)```", PAGE, re.DOTALL))
RECIPES = [content for _, language, content in documents.blocks("docs/own_data.md") if language == "yaml"]
BERT = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
SMALL = str(REPOSITORY / "ds_configs" / "finetune_small.json")


@pytest.fixture(scope="module")
def work(tmp_path_factory, small_tokenizer, small_shards, small_texts):
    """The folder that replaces `work/`."""
    from data_prep.sources.documents import Document
    from tests.shard_building import build_shards

    folder = tmp_path_factory.mktemp("work")
    for name, content in FILES.items():
        path = folder / name.removeprefix("work/")
        path.parent.mkdir(exist_ok=True)
        path.write_text(content, encoding="utf-8")
    for name in ("bert", "german_bert"):
        config = BertConfig(vocab_size=len(small_tokenizer), **BERT)
        BertModel(config).save_pretrained(folder / "models" / name)
        small_tokenizer.save_pretrained(folder / "models" / name)
    (folder / "shards").mkdir()
    (folder / "shards" / "wikipedia").symlink_to(small_shards)
    documents_of = (Document(str(i), f"also {text}", "") for i, text in enumerate(small_texts[:60]))
    build_shards(documents_of, folder / "shards" / "pubmed", small_tokenizer, sources=[], holdout=0.2)
    return folder


def test_the_page_has_a_recipe_for_each_family():
    tasks = [yaml.safe_load(recipe).get("task") for recipe in RECIPES]
    assert tasks == ["classification"] * 2 + ["regression", "summarization", "translation", "squad_qg", None]
    assert len(FILES) == 7


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.splitlines()[0].removeprefix("# work/"))
def test_every_recipe_is_planned_as_it_stands(recipe, work):
    path = work / "recipe.yaml"
    path.write_text(re.sub(r"(?<![\w./-])work/", f"{work}/", recipe), encoding="utf-8")
    found = check(str(path), [f"data.cache_dir={work}/cache"] if "task:" in recipe else [], SMALL, 2)
    assert found.errors == []
    assert any("start        a new run" in line for line in found.lines)


def test_the_rows_are_read_as_the_page_says(work):
    rows = {}
    for recipe in RECIPES[:2]:
        path = work / "read.yaml"
        path.write_text(re.sub(r"(?<![\w./-])work/", f"{work}/", recipe), encoding="utf-8")
        plan = finetune.make_plan(str(path), [f"data.cache_dir={work}/cache"], SMALL, 1)
        rows[plan.task.labels] = plan.task.sources
    assert rows == {("bad", "good"): ("text",), ("no", "yes"): ("text", "text_pair")}


def test_the_mixture_of_the_page(work):
    path = work / "mixture.yaml"
    path.write_text(re.sub(r"(?<![\w./-])work/", f"{work}/", RECIPES[-1]), encoding="utf-8")
    (work / "ds.json").write_text(
        json.dumps({"train_batch_size": 8, "optimizer": {"type": "AdamW", "params": {"lr": 1}}})
    )
    plan = pretrain.make_plan(str(path), [], str(work / "ds.json"), 1)
    assert [part.directory.name for part in plan.train_shards.parts] == ["wikipedia", "pubmed"]
    assert plan.train_shards.weights == [3, 1]
