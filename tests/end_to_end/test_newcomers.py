"""Three newcomers with the wheel and the documents, but without the checkout: each gets from nothing to a result.

They run the blocks of docs/first_steps.md as they stand, on a small corpus and for few steps.
"""

from __future__ import annotations

import itertools
import json
import re
import shlex
from pathlib import Path

import pytest

from tests import launching
from tests.documents import commands, named_blocks, reviews
from tests.executing_documents import save_bert
from tests.fork_server import ForkServer
from tests.installing import Installed

pytestmark = pytest.mark.slow

SMALL = ["steps=12", "intervals.eval_steps=6", "intervals.checkpoint_steps=6", "intervals.eval_samples=4"]


class Desk:
    """A newcomer's folder, and the programs of the wheel."""

    def __init__(self, installed: Installed, folder: Path) -> None:
        self.folder = folder
        self._installed = installed
        self._server: ForkServer = installed.fork_server(folder)
        self._numbers = itertools.count()

    def run(self, command: str, *more: str) -> str:
        """Run `bnb-ds`, a module with `python -m`, or a file of Python, in a process of its own; returns its output."""
        program, *arguments = shlex.split(command)
        log = self.folder / f"{next(self._numbers)}.log"
        code, text = self._server.run(program, [*arguments, *more], log)
        assert code == 0, text
        return text

    def python(self, name: str) -> str:
        """Run the block of Python below `<!-- test: name -->`."""
        script = self.folder / f"{name}.py"
        script.write_text(named_blocks()[name])
        return self.run(str(script))

    def shell(self, command: str) -> str:
        """Run a command line of bash."""
        result = self._installed.run(command, self.folder)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    def close(self) -> None:
        self._server.close()


@pytest.fixture(scope="module")
def desk(installed, tmp_path_factory, small_texts):
    folder = tmp_path_factory.mktemp("desk")
    (folder / "work").mkdir()
    rows = [{"id": str(number), "text": text} for number, text in enumerate(small_texts)]
    (folder / "work" / "docs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "LINES").write_text("".join(f"{text[:40]} [MASK]\n" for text in small_texts[:5]))
    desk = Desk(installed, folder)
    yield desk
    desk.close()


@pytest.fixture(scope="module")
def trained(desk):
    """The desk after the block `first_steps`, and what its commands said."""
    # `prep docs` reads the documentation of the whole environment; test_quickstart.py runs it.
    docs, vocab, text, pretrain, *use = commands("first_steps")
    assert docs.startswith("bnb-ds prep docs --output work/docs.jsonl")
    said = [desk.run(vocab), desk.run(text), desk.run(pretrain, "--stop-at", "6", *SMALL)]
    said += [desk.run(pretrain, *SMALL), *map(desk.run, use)]
    return desk, said


def test_a_student_gets_from_a_text_to_a_model_that_fills_in_words(trained):
    desk, (_, text, first, second, curves, export, reconstruct, generate) = trained
    assert re.search(r"heldout \d+ documents", text)
    assert "done         step 6 of 12" in first
    assert "start        step 6, from" in second
    assert "done         step 12 of 12" in second
    assert re.search(r"train/loss +[\d.]+ at step 6 -> [\d.]+ at step 12", curves)
    assert "step_00000012 -> work/models/first" in export
    assert reconstruct.count("source    ") == 3
    assert "generate: 5 lines from LINES to work/outputs.txt" in generate
    assert (desk.folder / "work" / "outputs.txt").read_text().count("\n") == 5


def test_a_student_trains_on_two_csv_files(desk, small_tokenizer):
    """docs/own_data.md, with a second file of rows to choose the model on."""
    rows, recipe = reviews()
    work = desk.folder / "work"
    (work / "data").mkdir()
    (work / "data" / "reviews.csv").write_text(rows)
    (work / "data" / "validation.csv").write_text('review,verdict\nI like it.,good\n"It is, in short, bad.",bad\n')
    (work / "reviews.yaml").write_text(recipe)
    save_bert(work / "models" / "bert", small_tokenizer)
    check, launch, evaluate, predict = commands("own_data")
    files = ["data.validation=work/data/validation.csv", "data.split=null"]
    assert "check: no errors" in desk.run(check, *files)
    arguments = launch.partition('"$(bnb-ds path finetune)"')[2]
    assert "validation: 2 rows read, 2 kept" in desk.run(f"bnb-ds finetune{arguments}", *files)
    assert "accuracy" in desk.run(evaluate)
    desk.run(predict)
    said = [json.loads(line)["label"] for line in (work / "predicted.jsonl").read_text().splitlines()]
    assert len(said) == 6
    assert set(said) <= {"bad", "good"}


def test_a_student_finds_recipes_and_makes_one(desk):
    listed, shown, copied, copied_json, schema = map(desk.run, commands("recipes"))
    assert "pretrain/tiny " in listed
    assert shown == (desk.folder / "work" / "mine.yaml").read_text()
    assert "work/mine.yaml" in copied
    assert "work/mine.json" in copied_json
    assert "PretrainRecipe" in json.loads(schema)["$defs"]


def test_an_engineer_launches_the_programs(trained):
    """The script for clusters trains on one rank; the two other launches are planned for four."""
    desk, _ = trained
    deepspeed, module, hostfile = commands("launch_installed")
    plan = ["--dry-run", "--world-size", "4"]
    data = ["data.shards=work/shards", "output_dir=work/runs/launched"]
    small = {"pretrain/wikipedia_base": "pretrain/tiny", "a100_bf16_zero2": "cpu_debug", "--num_gpus 8": "--num_gpus 1"}
    for old, new in small.items():
        deepspeed, hostfile = (command.replace(old, new) for command in (deepspeed, hostfile))

    program = desk.run("bnb-ds path pretrain").strip()
    assert program.endswith("/site/bnb_ds/shipped/runs/pretrain.py"), "the checkout must not be used"
    arguments = deepspeed.partition('"$(bnb-ds path pretrain)"')[2]
    assert "micro steps x 4 ranks" in desk.run(f"{program}{arguments}", *data, "steps=2", *plan)

    rows = "".join(f'{{"sentence": "film {i}", "label": {i % 2}, "idx": {i}}}\n' for i in range(64))
    (desk.folder / "films.jsonl").write_text(rows)
    films = ["data.train=films.jsonl", "data.validation=films.jsonl", "model.checkpoint=work/models/first"]
    arguments = module.partition("--module ")[2]
    assert "4 ranks" in desk.run(arguments, *films, "data.max_source_length=32", *plan)

    hostfile = hostfile.replace("--num_gpus 1", f"--num_gpus 1 --master_port {launching.free_port()}")
    assert "done         step 2 of 2" in desk.shell(f"{hostfile} {shlex.join([*data, 'steps=2', *SMALL[1:]])}")
    assert list((desk.folder / "work" / "logs").glob("*/*_rank0.log"))


def test_a_user_of_hugging_face_loads_the_model(trained):
    desk, _ = trained
    place = desk.folder / "work" / "models" / "wikipedia_base"
    place.symlink_to("first")
    assert desk.python("transformers").splitlines()[-1].startswith("['")
    desk.python("pipeline")


def test_the_shell_completes(desk):
    lines = commands("completion")
    assert desk.shell("\n".join([*lines, "complete -p bnb-ds"])).startswith("complete ")
