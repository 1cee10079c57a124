"""What recipes say of their decoder positions, on real data: how many targets fit, and what the paper's would cost."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from bnb_ds.config.loading import load_recipe
from bnb_ds.data.tokenization import load_tokenizer
from bnb_ds.finetune.recipe import FinetuneRecipe
from bnb_ds.model.configuration import BnbConfig
from bnb_ds.model.flops import forward_flops
from bnb_ds.model.slots import decoder_lengths
from bnb_ds.model.target_rules import BnbTargetRules
from bnb_ds.tasks.codec import Codec

RECIPES = Path(__file__).resolve().parents[3] / "runs" / "recipes"
BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
ENGLISH, MANY = "bert-base-cased", "bert-base-multilingual-cased"


def lines(path: Path) -> list[str]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [line.rstrip("\n") for line in file]


def summaries(folder: Path) -> list[tuple[tuple[str, ...], str]]:
    rows = [json.loads(line) for line in lines(folder / "summarization" / "scitldr" / "dev.jsonl.gz")]
    return [((" ".join(row["source"]),), row["target"][0]) for row in rows]


def questions(folder: Path) -> list[tuple[tuple[str, ...], str]]:
    articles = json.loads("\n".join(lines(folder / "squad" / "dev-v1.1.json.gz")))["data"]
    paragraphs = [paragraph for article in articles for paragraph in article["paragraphs"]]
    asked = [(part["context"], question) for part in paragraphs for question in part["qas"]]
    return [((question["answers"][0]["text"], text), question["question"]) for text, question in asked[::10]]


def pairs(name: str, source: str, target: str):
    def read(folder: Path) -> list[tuple[tuple[str, ...], str]]:
        files = [lines(folder / "translation" / f"{name}.{language}.gz") for language in (source, target)]
        return [((left,), right) for left, right in zip(*files, strict=True)]

    return read


#: recipe, rows, tokenizers, the paper's positions; share of targets that fit, operations of the paper's positions over
#: those of ours, share of the paper's positions that stay blank
CASES = {
    "xsum": (summaries, ENGLISH, ENGLISH, 512, 1.0, 2.4, 0.94),
    "squad_qg": (questions, ENGLISH, ENGLISH, 512, 1.0, 3.0, 0.97),
    "wmt14_en_de": (pairs("wmt_ende/newstest2013", "en", "de"), ENGLISH, MANY, 128, 0.995, 2.2, 0.75),
    "wmt14_de_en": (pairs("wmt_ende/newstest2013", "de", "en"), MANY, ENGLISH, 128, 1.0, 1.7, 0.8),
    "wmt16_en_ro": (pairs("wmt_enro/newsdev2016", "en", "ro"), ENGLISH, MANY, 128, 0.981, 1.9, 0.67),
    "wmt16_ro_en": (pairs("wmt_enro/newsdev2016", "ro", "en"), MANY, ENGLISH, 128, 1.0, 1.4, 0.76),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_positions_of_a_recipe_beside_the_papers(name, shared_data):
    read, source_name, target_name, papers, *expected = CASES[name]
    recipe = load_recipe(RECIPES / "finetune" / f"{name}.yaml", [], FinetuneRecipe)
    tokenizers = [load_tokenizer(shared_data / "tokenizers" / each) for each in (source_name, target_name)]
    codec, task = Codec(*tokenizers), recipe.declared_task
    longest = recipe.data.max_source_length or task.max_source_length
    rows = read(shared_data)
    sources = codec.encode_sources([source for source, _ in rows], longest, cut=task.cut).tokens
    targets, _ = codec.encode_targets([target for _, target in rows], task.max_target_length)
    source_B, target_B = (np.array([len(row) for row in each]) for each in (sources, targets))
    halves = [{**BASE, "vocab_size": len(tokenizer)} for tokenizer in tokenizers]
    same = ("decoder_length_ratio", "decoder_length_min", "decoder_positions")
    own = {field: getattr(recipe.model, field) for field in same if field in recipe.model.model_fields_set}
    theirs = {"decoder_length_ratio": 1.0, "decoder_length_min": papers, "decoder_length_max": papers}
    configs = [BnbConfig(encoder=halves[0], decoder=halves[1], **fields) for fields in (own, theirs)]
    slots_B = [decoder_lengths(source_B, config) for config in configs]
    offsets = np.cumsum([0, *target_B])
    fits = BnbTargetRules(configs[0]).fits(np.concatenate(targets), offsets, slots_B[0], source_B).mean()
    operations = [forward_flops(config, source_B, slots) for config, slots in zip(configs, slots_B, strict=True)]
    found = (
        round(float(fits), 3),
        round(operations[1] / operations[0], 1),
        round(1 - target_B.sum() / slots_B[1].sum(), 2),
    )
    assert list(found) == expected
