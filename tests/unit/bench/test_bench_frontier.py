"""`bnb-ds bench frontier`: scores are those of `bnb-ds evaluate`, what is done is kept, and the line is right."""

from __future__ import annotations

import json
import shutil
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from bnb_ds.baselines.settings import TransformerSection
from bnb_ds.bench.frontier import measuring
from bnb_ds.bench.frontier.contestants import Contestant
from bnb_ds.bench.frontier.measuring import Comparison, Outcome
from bnb_ds.bench.frontier.pareto import draw, on_the_line, points, table
from bnb_ds.cli import main
from bnb_ds.errors import DataError
from bnb_ds.evaluate.model import evaluate_model
from bnb_ds.systems.baselines import Transformer
from bnb_ds.tasks.codec import Codec
from bnb_ds.tasks.registry import get_task
from bnb_ds.tasks.text_lengths import Lengths
from tests.exports import save_task_model
from tests.unit.decoding.test_ngram_lm import ARPA

SIZE = {"hidden_size": 12, "encoder_layers": 1, "decoder_layers": 1, "num_attention_heads": 3, "intermediate_size": 20}
NUM_ROWS = 7


def save_transformer(directory: Path, codec: Codec, seed: int, **size: int) -> None:
    section = TransformerSection(kind="transformer", size={**SIZE, **size}, num_beams=2)
    system = Transformer(get_task("translation"), Lengths(16, 12), codec, section)
    torch.manual_seed(seed)
    model = system.build()
    model.save_pretrained(directory)
    system.save_files(model.config, directory)


@pytest.fixture(scope="module")
def folder(small_tokenizer, small_texts, tmp_path_factory):
    """Two Transformers, a CTC model, a graph and a model for labels, each with the validation rows in its recipe."""
    made = tmp_path_factory.mktemp("frontier")
    codec = Codec(small_tokenizer, small_tokenizer)
    rows = [
        {"source": " ".join(text.split()[: 3 + i]), "target": text[:20]}
        for i, text in enumerate(small_texts[:NUM_ROWS])
    ]
    (made / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"validation": str(made / "rows.jsonl"), "cache_dir": str(made / "cache")}
    save_transformer(made / "first", codec, 1)
    save_transformer(made / "second", codec, 2)
    save_task_model(made / "ctc", "translation", codec, decoder_length_ratio=2.0)
    save_task_model(made / "dag", "translation", codec, target="dag", decoder_length_ratio=2.0)
    save_task_model(made / "labels", "sst2", codec)
    for name in ("first", "second", "ctc", "dag"):
        (made / name / "recipe.yaml").write_text(yaml.safe_dump({"task": "translation", "data": data}))
    return made


def frontier(*arguments: object) -> int:
    return main(["bench", "frontier", *map(str, arguments)])


@pytest.mark.slow
def test_scores_are_those_of_evaluations_and_what_is_done_is_kept(folder, tmp_path, monkeypatch, capsys):
    seeds = f"Transformer={folder / 'first'},{folder / 'second'}"
    greedy = f"graph, greedy={folder / 'dag'}:strategy=greedy"
    systems = [seeds, folder / "ctc", greedy]
    arguments = [*systems, "--batch-size", 1, 3, "--rounds", 2, "--threads", 1, "--output", tmp_path / "out"]
    assert frontier(*arguments, "--picture", tmp_path / "new" / "picture.svg", "--score", "length_ratio", "bleu") == 0
    text = capsys.readouterr().out
    results = json.loads((tmp_path / "out" / "frontier.json").read_text())
    by_name = {system["system"]: system for system in results["systems"]}
    assert list(by_name) == ["Transformer", "ctc", "graph, greedy"]
    for name, models in (("Transformer", ("first", "second")), ("ctc", ("ctc",))):
        own = [evaluate_model(folder / model).scores for model in models]
        for score in ("bleu", "length_ratio"):
            assert by_name[name]["scores"][score] == [scores[score] for scores in own]
    ratios = by_name["Transformer"]["scores"]["length_ratio"]
    assert f"{statistics.mean(ratios):.2f} ± {statistics.stdev(ratios):.2f}" in text
    assert "<svg" in (tmp_path / "new" / "picture.svg").read_text()[:500]
    for system in by_name.values():
        assert list(system["speed"]) == ["1", "3"]
        for speed in system["speed"].values():
            rounds = [wall for wall, _ in speed["wall_and_cpu_seconds_of_rounds"]]
            assert len(rounds) == 2
            assert speed["sentences_per_second"] == NUM_ROWS / statistics.median(rounds)
    assert "All systems read the same tokens." in text
    decoding = [by_name[name]["decoding"] for name in by_name]
    assert decoding == [{"num_beams": 2}, {}, {"strategy": "greedy"}]
    monkeypatch.setattr(measuring, "_round", None)
    monkeypatch.setattr(measuring, "scores_of", None)
    assert frontier(*arguments, "--score", "length_ratio", "bleu") == 0
    assert json.loads((tmp_path / "out" / "frontier.json").read_text()) == results


def test_another_round_is_added_to_those_before(folder, tmp_path):
    arguments = [folder / "ctc", "--batch-size", 7, "--sentences", 5, "--threads", 1, "--output", tmp_path]
    for rounds in (1, 3):
        assert frontier(*arguments, "--rounds", rounds) == 0
        (system,) = json.loads((tmp_path / "frontier.json").read_text())["systems"]
        taken = system["speed"]["7"]["wall_and_cpu_seconds_of_rounds"]
        assert len(taken) == rounds
    (rounds,) = json.loads((tmp_path / "state.json").read_text())["rounds"].values()
    assert len(rounds["7"]) == 3


def test_a_language_model_is_heard(folder, tmp_path, capsys):
    pytest.importorskip("kenlm", reason="the optional package kenlm is not installed")
    (tmp_path / "words.arpa").write_text(ARPA)
    heard = f"lm={tmp_path / 'words.arpa'},lm_weight=0.0"
    systems = [
        f"{name}={folder / 'ctc'}:beam_size=4,{heard},word_bonus={bonus}" for name, bonus in (("no", 0.0), ("yes", 9.0))
    ]
    assert frontier(*systems, "--rounds", 0, "--score", "length_ratio", "--output", tmp_path / "out") == 0
    written = [
        system["scores"]["length_ratio"][0]
        for system in json.loads((tmp_path / "out" / "frontier.json").read_text())["systems"]
    ]
    assert written[0] < written[1]
    capsys.readouterr()
    assert (
        frontier(f"alone={folder / 'ctc'}:beam_size=4,word_bonus=9.0", "--rounds", 0, "--output", tmp_path / "none")
        == 2
    )
    assert "lm_weight and word_bonus belong to a language model: give lm too" in capsys.readouterr().err


def test_scores_alone(folder, tmp_path, capsys):
    arguments = [f"greedy={folder / 'first'}:num_beams=1", folder / "first", "--rounds", 0, "--output", tmp_path]
    assert frontier(*arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"translation, validation, {NUM_ROWS} rows"
    assert lines[2] == "| system | kind | decoding | parameters | models | bleu |"
    assert [line.split(" | ")[2] for line in lines[4:6]] == ["num_beams 1", "num_beams 2"]


def test_the_line_is_what_no_other_point_beats():
    points = {
        "slow": (1.0, 30.0),
        "middle": (5.0, 28.0),
        "beaten": (4.0, 28.0),
        "fast": (9.0, 10.0),
        "last": (9.0, 9.0),
    }
    assert on_the_line(points) == ["slow", "middle", "fast"]
    assert on_the_line({"a": (1.0, 1.0), "b": (1.0, 1.0)}) == ["a", "b"]


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_a_picture_leaves_out_scores_that_are_no_numbers(tmp_path, suffix):
    systems = {"good": [20.0, 22.0], "lost": [20.0, None]}
    outcomes = [
        Outcome(
            Contestant(name, (Path(name),)), "bnb", {}, 10, "t", {"bleu": values}, {1: [(2.0, 2.0)], 8: [(1.0, 1.0)]}
        )
        for name, values in systems.items()
    ]
    comparison = Comparison("translation", "test", "bleu", 100, 100, outcomes)
    assert points(comparison, 8, "bleu") == {"good": (100.0, 21.0)}
    assert "| lost | bnb | greedy | 0.0 M | 1 | no number | 50 | 100 | 20 | - |" in table(comparison, ["bleu"])
    path = tmp_path / f"picture{suffix}"
    draw(path, comparison, "bleu", "all of them")
    assert path.stat().st_size > 5000
    with pytest.raises(DataError, match="--picture: bleu is a number of no system; leave it out, or give another"):
        draw(path, replace(comparison, outcomes=outcomes[1:]), "bleu", "none")


def test_names_stand_inside_the_frame(tmp_path, monkeypatch):
    """The fastest of them has its name at its left."""
    pytest.importorskip("matplotlib", reason="the optional package matplotlib is not installed")
    from matplotlib.figure import Figure

    names = {"slow": 1.0, "one pass, with a long name, blank penalty 1": 20.0, "one pass, with another long name": 21.0}
    outcomes = [
        Outcome(Contestant(name, (Path(name),)), "bnb", {}, 10, "t", {"bleu": [20.0]}, {1: [(100 / speed, 1.0)]})
        for name, speed in names.items()
    ]
    drawn, savefig = [], Figure.savefig

    def save(figure, *args, **how):
        drawn.append(figure)
        savefig(figure, *args, **how)

    monkeypatch.setattr(Figure, "savefig", save)
    draw(tmp_path / "p.png", Comparison("translation", "test", "bleu", 100, 100, outcomes), "bleu", "all of them")
    (axes,) = drawn[0].axes
    frame = axes.get_window_extent()
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == 3
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 for box in boxes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a="], "a=: write a system as MODEL, or as NAME=MODEL,MODEL:KEY=VALUE,KEY=VALUE"),
        (["a=b:c=1,d"], "'d' is no KEY=VALUE"),
        (["{folder}/ctc", "{folder}/ctc"], "ctc: two systems have this name; write NAME=MODEL to give them others"),
        (["{folder}/labels"], "labels: gives labels; bench frontier compares models that write texts"),
        (
            ["{folder}/ctc:num_beams=2"],
            "ctc: a model of kind bnb has no setting 'num_beams'; did you mean 'length_beam'?",
        ),
        (["{folder}/first:strategy=greedy"], "a model of kind transformer has no setting 'strategy'; known: num_beams"),
        (["{folder}/first:num_beams=none"], "first: num_beams is 'none'; give a whole number of at least 1"),
        (["{folder}/ctc:strategy=greedy"], "strategy is 'greedy', but the model's target is 'ctc'"),
        (["{folder}/ctc", "--score", "blue"], "--score blue: is not a score of translation; did you mean 'bleu'?"),
        (["{folder}/ctc", "--picture", "x.jpg"], "--picture x.jpg: give a name that ends with .png or .svg"),
        (["{folder}/ctc", "--picture", "x.svg"], "--picture: there is no speed to draw with --rounds 0"),
        (["{folder}/ctc", "--dtype", "fp16"], "--dtype fp16 needs a GPU: use bf16 or fp32 on a CPU"),
    ],
)
def test_what_is_refused_is_one_line(folder, tmp_path, capsys, arguments, message):
    given = [argument.format(folder=folder) for argument in arguments]
    assert frontier(*given, "--rounds", 0, "--output", tmp_path / "out") == 2
    said = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(said) == 1
    assert message.format(folder=folder) in said[0]


def test_models_of_one_system_differ_by_their_seed_alone(folder, tmp_path, capsys):
    shutil.copytree(folder / "ctc", tmp_path / "run" / "best")
    shutil.copytree(folder / "ctc", tmp_path / "copy")
    shutil.copytree(folder / "second", tmp_path / "tuned")
    generation = tmp_path / "tuned" / "generation_config.json"
    generation.write_text(json.dumps({**json.loads(generation.read_text()), "num_beams": 4}))
    ctc, first, second = (folder / name for name in ("ctc", "first", "second"))
    save_transformer(tmp_path / "large", Codec.load(first), 3, intermediate_size=24)
    shutil.copy(first / "recipe.yaml", tmp_path / "large")
    alone = "models of one system (A) differ by their seed alone: make two systems of them"
    for models, message in (
        ([ctc, ctc], f"{ctc}: has the same weights as {ctc}; give each model of a system (A) once"),
        ([ctc, tmp_path / "copy"], f"{tmp_path}/copy: has the same weights as {ctc}; give each model"),
        (
            [tmp_path / "run", tmp_path / "run" / "best"],
            f"{tmp_path}/run/best: has the same weights as {tmp_path}/run;",
        ),
        ([first, second, first], f"{first}: has the same weights as {first}; give each model of a system (A) once"),
        ([first, ctc], f"{ctc}: its kind is bnb, and that of {first} is transformer; {alone}"),
        ([ctc, folder / "dag"], f"{folder}/dag: its target is dag, and that of {ctc} is ctc; {alone}"),
        ([first, tmp_path / "large"], f"{tmp_path}/large: its number of parameters is "),
        ([first, tmp_path / "tuned"], f"{tmp_path}/tuned: its decoding is {{'num_beams': 4}}, and that of {first} is "),
    ):
        assert frontier(f"A={','.join(map(str, models))}", "--rounds", 0, "--output", tmp_path / "out") == 2
        said = capsys.readouterr().err
        assert message in said
        assert said.count("\n") == 1
    same = f"A={first},{tmp_path / 'tuned'}:num_beams=1"
    assert frontier(same, "--rounds", 0, "--output", tmp_path / "out") == 0
    assert "| A | transformer | num_beams 1 | 0.0 M | 2 |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("last", "message"),
    [
        (["{folder}/nothing"], "nothing: not a fine-tuned model"),
        (["A={folder}/first,{folder}/nothing"], "nothing: not a fine-tuned model"),
        (["{folder}/labels"], "labels: gives labels; bench frontier compares models that write texts"),
        (["A={folder}/dag:strategy=greedi"], "dag: strategy is 'greedi'"),
        (["A={folder}/second:strategy=greedy"], "a model of kind transformer has no setting 'strategy'"),
        (["A={folder}/first,{folder}/ctc"], "ctc: its kind is bnb, and that of "),
        (["--score", "bleu", "blue"], "--score blue: is not a score of translation; did you mean 'bleu'?"),
    ],
)
def test_what_is_wrong_with_the_last_system_is_told_before_the_first_is_scored(
    folder, tmp_path, monkeypatch, capsys, last, message
):
    monkeypatch.setattr(measuring, "_score", None)
    given = [argument.format(folder=folder) for argument in last]
    assert frontier(folder / "ctc", *given, "--rounds", 0, "--output", tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_a_model_that_went_wrong_is_refused(folder, tmp_path, capsys):
    shutil.copytree(folder / "ctc", tmp_path / "wrong")
    weights = load_file(tmp_path / "wrong" / "model.safetensors")
    save_file(
        {name: weight * float("nan") for name, weight in weights.items()}, tmp_path / "wrong" / "model.safetensors"
    )
    assert frontier(tmp_path / "wrong", "--rounds", 0, "--output", tmp_path / "out") == 2
    assert "wrong: has weights that are no finite numbers (in fp32); give a checkpoint from" in capsys.readouterr().err


def test_models_of_other_data_and_a_damaged_state_are_refused(folder, tmp_path, capsys):
    other = tmp_path / "rows.jsonl"
    other.write_text(json.dumps({"source": "the value", "target": "the object"}) + "\n")
    recipe = yaml.safe_load((folder / "ctc" / "recipe.yaml").read_text())
    recipe["data"]["validation"] = str(other)
    shutil.copytree(folder / "dag", tmp_path / "dag")
    (tmp_path / "dag" / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    arguments = [folder / "ctc", tmp_path / "dag", "--rounds", 0, "--output", tmp_path]
    assert frontier(*arguments) == 2
    assert "dag: its translation rows have other references than those of the model before" in capsys.readouterr().err
    (tmp_path / "state.json").write_text("{")
    assert frontier(*arguments) == 2
    assert "state.json: cannot be read (JSONDecodeError" in capsys.readouterr().err
