"""Every shipped fine-tuning recipe is read and planned, with small stand-ins for its models and data."""

from __future__ import annotations

import json
import shutil

import pytest
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertModel,
    ModernBertConfig,
    ModernBertModel,
)

from bnb_ds.config.deepspeed import load_ds_config
from bnb_ds.config.loading import dump_recipe, load_recipe
from bnb_ds.config.model_section import ModelSize
from bnb_ds.errors import ConfigError, DataError
from bnb_ds.evaluate.model import Evaluation
from bnb_ds.finetune import glue
from bnb_ds.finetune.glue import Row, run_glue, table_of
from bnb_ds.finetune.plan import describe_dry_run, make_plan
from bnb_ds.finetune.recipe import FinetuneRecipe
from bnb_ds.modeling import BnbConfig, BnbForConditionalGeneration
from bnb_ds.tasks.data_section import TaskDataSection
from bnb_ds.tasks.examples import read_examples
from bnb_ds.tasks.registry import get_task
from bnb_ds.train.early_stopping import EarlyStopping
from tests.launching import REPOSITORY

FOLDER = REPOSITORY / "runs" / "recipes"
PRETRAINING = FOLDER / "paper" / "wikipedia.yaml"
RECIPES = sorted({*(FOLDER / "finetune").rglob("*.yaml"), *(FOLDER / "paper").glob("*.yaml")} - {PRETRAINING})
SIZE = ModelSize(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory, small_tokenizer):
    """A small BERT, ModernBERT, BnB and BART, each with a tokenizer."""
    folder = tmp_path_factory.mktemp("recipes")
    bert = {**SIZE.model_dump(), "vocab_size": len(small_tokenizer)}
    BertModel(BertConfig(**bert)).save_pretrained(folder / "bert")
    long = {name: value for name, value in bert.items() if name != "max_position_embeddings"}
    long["pad_token_id"] = small_tokenizer.pad_token_id
    ModernBertModel(ModernBertConfig(**long)).save_pretrained(folder / "modernbert")
    config = BnbConfig(
        encoder=bert,
        decoder={**bert, "num_hidden_layers": 4},
        decoder_positions="shared",
        bos_token_id=small_tokenizer.cls_token_id,
        eos_token_id=small_tokenizer.sep_token_id,
    )
    BnbForConditionalGeneration(config).save_pretrained(folder / "bnb")
    BartForConditionalGeneration(
        BartConfig(
            vocab_size=len(small_tokenizer),
            d_model=32,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=64,
            decoder_ffn_dim=64,
            pad_token_id=small_tokenizer.pad_token_id,
            eos_token_id=small_tokenizer.sep_token_id,
            decoder_start_token_id=small_tokenizer.sep_token_id,
        )
    ).save_pretrained(folder / "bart")
    for name in ("bert", "modernbert", "bnb", "bart"):
        small_tokenizer.save_pretrained(folder / name)
    return folder


def rows_of(task) -> list[dict]:
    """Rows with the column names of a task."""
    rows = []
    for i in range(30):
        row: dict = {"id": str(i), "idx": i, "title": "T"}
        for column in (*task.sources, task.target):
            row[column] = f"the value {i}"
        if not task.is_generation:
            row[task.target] = i % len(task.labels) if task.labels else i / 10
        rows.append(row)
    return rows


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_shipped_recipe_is_planned(path, stand_ins, tmp_path):
    recipe = load_recipe(path, schema=FinetuneRecipe)
    task = recipe.declared_task
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows_of(task)))
    overrides = [f"output_dir={tmp_path / 'out'}", f"data.cache_dir={tmp_path / 'cache'}", f"data.train={data}"]
    overrides += ["data.columns={}", "data.documents={}"]
    if recipe.data.split is None:
        overrides += [f"data.{split}={data}" for split in task.validation_splits]
    if recipe.data.test is not None:
        overrides.append("data.test=null")
    whole = "bart" if recipe.model.kind == "seq2seq" else "bnb"
    for field, name in (("checkpoint", whole), ("encoder", "bert"), ("decoder", "bert")):
        value = getattr(recipe.model, field, None)
        if value is not None:
            overrides.append(f"model.{field}={stand_ins / ('modernbert' if 'ModernBERT' in value else name)}")
    if recipe.layer_distillation is not None:
        teacher = shutil.copytree(stand_ins / "bnb", tmp_path / "teacher")
        made_for = {"kind": "bnb", "task": recipe.task, "lengths": {"source": 64, "target": 64}}
        (teacher / "task.json").write_text(json.dumps(made_for))
        overrides.append(f"layer_distillation.teacher={teacher}")
    for field in ("tokenizer", "target_tokenizer"):
        if getattr(recipe.data, field) is not None:
            overrides.append(f"data.{field}={stand_ins / 'bert'}")
    plan = make_plan(str(path), overrides, str(REPOSITORY / "ds_configs" / "finetune_glue.json"), 8)
    lines = "\n".join(describe_dry_run(plan))
    assert f"task         {task.title} ({task.name}), model kind {recipe.model.kind}" in lines
    assert "batch        32 samples" in lines
    assert not (tmp_path / "out").exists()


def test_every_task_of_glue_has_a_recipe():
    names = {path.stem for path in RECIPES if path.parent.name == "glue"}
    assert names == {"cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli"}


def test_the_table_of_glue():
    nan = float("nan")
    rows = [
        Row("cola", "validation", "matthews_correlation", {1: 50.0, 2: 54.0}),
        Row("qqp", "validation", "f1", {1: 70.0, 2: nan}, {"accuracy": {1: 89.0, 2: 88.0}}),
        Row("mnli", "validation_matched", "accuracy", {1: 84.0, 2: 84.0}),
        Row("mnli", "validation_mismatched", "accuracy", {1: 80.0, 2: 82.0}),
        Row("wnli", "validation", "accuracy", {1: 56.3, 2: 56.3}),
    ]
    assert table_of(rows).splitlines() == [
        "| task | score | best of 2 | mean ± sd | other scores: best, mean | in the average |",
        "|---|---|---|---|---|---|",
        "| CoLA | matthews_correlation | 54.0 | 52.0 ± 2.8 |  | yes |",
        "| QQP | f1 | 70.0 | 70.0 ± 0.0 (1 of 2 seeds; the others gave no number) | accuracy 89.0, 88.5 | yes |",
        "| MNLI-m | accuracy | 84.0 | 84.0 ± 0.0 |  | yes |",
        "| MNLI-mm | accuracy | 82.0 | 81.0 ± 1.4 |  | no |",
        "| WNLI | accuracy | 56.3 | 56.3 ± 0.0 |  | no |",
        "| average of 3 |  | 69.3 | 68.7 |  |  |",
        "The average is over the paper's eight rows: CoLA, SST-2, MRPC, STS-B, QQP, MNLI-m, QNLI, RTE."
        " Not there yet: SST-2, MRPC, STS-B, QNLI, RTE.",
    ]


def test_a_task_without_any_number_has_none_in_the_table():
    row = Row("rte", "validation", "accuracy", {1: float("nan")})
    assert "| RTE | accuracy | nan | nan ± 0.0 (0 of 1 seeds; the others gave no number) |" in table_of([row])


def test_the_average_is_that_of_all_eight_rows():
    names = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte")
    splits = {"mnli": "validation_matched"}
    rows = [Row(name, splits.get(name, "validation"), "x", {1: float(i)}) for i, name in enumerate(names)]
    others = [Row("wnli", "validation", "x", {1: 99.0}), Row("mnli", "validation_mismatched", "x", {1: 99.0})]
    table = table_of([*rows, *others])
    assert "| average of 8 |  | 3.5 | 3.5 |" in table
    assert table.endswith("MNLI-m, QNLI, RTE.\n")


def test_recipes_that_glue_does_not_take(tmp_path):
    folder = REPOSITORY / "runs" / "recipes" / "finetune"
    with pytest.raises(ConfigError, match=r"xsum\.yaml: its task xsum asks for texts; give one recipe for each GLUE"):
        run_glue([str(folder / "xsum.yaml")], [], "ds.json", seeds=[1], output=tmp_path, num_gpus=1)
    twice = [str(folder / "glue" / "rte.yaml")] * 2
    with pytest.raises(ConfigError, match=r"its task rte is that of .*rte\.yaml too"):
        run_glue(twice, [], "ds.json", seeds=[1], output=tmp_path, num_gpus=1)


@pytest.mark.parametrize("num_gpus", [1, 2])
def test_a_run_of_glue_that_fails(tmp_path, monkeypatch, num_gpus):
    """It is started by the launcher only if it has several ranks."""
    started = []

    def run(command):
        started.append(command)
        return 3

    monkeypatch.setattr("bnb_ds.finetune.launching.run_in_session", run)
    recipe = str(REPOSITORY / "runs" / "recipes" / "finetune" / "glue" / "rte.yaml")
    message = r"rte\.yaml \(seed=1 output_dir=.*\): fine-tuning ended with exit code 3; see above"
    with pytest.raises(DataError, match=message):
        run_glue([recipe], [], "ds.json", seeds=[1, 2], output=tmp_path, num_gpus=num_gpus)
    (command,) = started
    assert command[command.index("bnb_ds.finetune") + 1] == recipe
    assert ("deepspeed.launcher.runner" in command) == (num_gpus == 2)


def test_early_stopping():
    stopping = EarlyStopping(patience=2)
    assert [stopping.observe(x) for x in (3.0, 2.0, 2.5, float("nan"), 1.0)] == [False, False, False, True, False]
    resumed = EarlyStopping(patience=2)
    resumed.restore(stopping.state())
    assert resumed.state() == stopping.state() == {"best": 1.0, "since_best": 0}
    fresh = EarlyStopping(patience=1)
    fresh.restore(EarlyStopping(patience=1).state())
    assert not fresh.observe(5.0)


def test_rows_of_mnli_are_not_set_aside_for_a_split_that_it_lacks():
    """It is scored on two splits of other names, so nothing would read them."""
    mnli = REPOSITORY / "runs" / "recipes" / "finetune" / "glue" / "mnli.yaml"
    message = (
        r"data.split.validation 0.1: mnli is scored on validation_matched and validation_mismatched, so nothing would"
        " read the rows set aside; remove it, and name files for those splits"
    )
    with pytest.raises(ConfigError, match=message):
        load_recipe(mnli, ["data.split={validation: 0.1}"], schema=FinetuneRecipe)
    load_recipe(mnli, ["data.split={test: 0.1}"], schema=FinetuneRecipe)


def test_lists_of_documents_divide_one_file():
    """As Du et al. divide SQuAD's training set. Without a list for each split, a model would see test rows."""
    recipe, squad = REPOSITORY / "runs" / "recipes" / "finetune" / "squad_qg.yaml", "train-v1.1.json"
    files = [f"data.{split}={squad}" for split in ("train", "test")]
    load_recipe(recipe, [*files, "data.validation=dev-v1.1.json"], schema=FinetuneRecipe)
    lists = ["{}", "{test: a}", "{train: a}", "{train: a, test: a}", "{train: a, validation: b}"]
    message = (
        f"data.test {squad}: is also data.validation or data.train; name a file .*, or a list for each of these splits"
    )
    for documents in lists:
        with pytest.raises(ConfigError, match=message):
            load_recipe(recipe, [*files, "data.validation=v", f"data.documents={documents}"], schema=FinetuneRecipe)


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("validation_matched", r"no file is named for this split; name one, or set data.hub$"),
        ("test", r"no file is named for this split; name one, or set data.split or data.hub$"),
    ],
)
def test_the_way_out_for_a_split_without_file_works(split, message, tmp_path):
    with pytest.raises(ConfigError, match=rf"^data.{split}: {message}"):
        list(read_examples(get_task("mnli"), TaskDataSection(train=str(tmp_path / "rows.tsv")), split))


def test_the_figures_of_glue_are_json(tmp_path, monkeypatch):
    """A seed that gave no number is null there, which every reader of JSON understands."""
    for seed in (1, 2):
        best = tmp_path / "sst2" / f"seed-{seed}" / "best"
        best.mkdir(parents=True)
        (best / "task.json").touch()

    def evaluate(run, split):
        return Evaluation(run, {"scores": {"loss": 1.0, "accuracy": float("nan") if run.name == "seed-1" else 90.0}})

    monkeypatch.setattr(glue, "evaluate_model", evaluate)
    recipe = REPOSITORY / "runs" / "recipes" / "finetune" / "glue" / "sst2.yaml"
    finished = load_recipe(recipe, ["seed=2", f"output_dir={tmp_path}"], schema=FinetuneRecipe)
    run = tmp_path / "sst2" / "seed-2"
    (run / "config.resolved.yaml").write_text(dump_recipe(finished))
    ds_config = REPOSITORY / "ds_configs" / "finetune_glue.json"
    ds_values = load_ds_config(ds_config, 1).values
    (run / "ds_config.resolved.json").write_text(json.dumps(ds_values))
    with pytest.raises(
        ConfigError, match=r"seed-2: is finished, but with other settings: epochs: .*; restore them, or"
    ):
        run_glue([str(recipe)], ["epochs=9"], str(ds_config), seeds=[1, 2], output=tmp_path, num_gpus=1)
    other = tmp_path / "other.json"
    other.write_text(json.dumps({**json.loads(ds_config.read_text()), "gradient_clipping": 5.0}))
    with pytest.raises(ConfigError, match=r"with other settings: gradient_clipping: 1.0 -> 5.0; restore them, or"):
        run_glue([str(recipe)], [], str(other), seeds=[1, 2], output=tmp_path, num_gpus=1)
    table = run_glue([str(recipe)], [], str(ds_config), seeds=[1, 2], output=tmp_path, num_gpus=1)
    assert "1 of 2 seeds" in table

    def refuse(constant):
        raise AssertionError(constant)

    (row,) = json.loads((tmp_path / "glue.json").read_text(), parse_constant=refuse)
    assert row["by_seed"] == {"1": None, "2": 90.0}
