"""``bnb-ds average``: the mean of the checkpoints of a run."""

from __future__ import annotations

import shutil

import pytest
import torch
import yaml

from bnb_ds.checkpoint.store import selection_loss, whole_checkpoints
from bnb_ds.checkpoint.weights import read_weights
from bnb_ds.cli import main
from bnb_ds.modeling import BnbForConditionalGeneration
from tests.jobs import Job

pytestmark = pytest.mark.slow

INTERVALS = ["intervals.eval_steps=2", "intervals.checkpoint_steps=2", "intervals.keep_checkpoints=4"]


@pytest.fixture(scope="module")
def run(small_shards, fork_server, tmp_path_factory):
    job = Job(tmp_path_factory.mktemp("average"), small_shards)
    job.train_forked(fork_server, *INTERVALS, ranks=1)
    return job


def refusal(capsys, *arguments) -> str:
    capsys.readouterr()
    assert main(["average", *map(str, arguments)]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    return message


@pytest.mark.parametrize("flag", ["--last", "--best"])
def test_the_mean_of_three(run, tmp_path, flag):
    assert main(["average", str(run.output), flag, "3", "--output", str(tmp_path / "model")]) == 0
    checkpoints = whole_checkpoints(run.output / "checkpoints")
    chosen = checkpoints[-3:] if flag == "--last" else sorted(checkpoints, key=selection_loss)[:3]
    expected = [read_weights(path) for path in chosen]
    model = BnbForConditionalGeneration.from_pretrained(tmp_path / "model")
    for name, parameter in model.named_parameters():
        mean = torch.stack([weights[name].double() for weights in expected]).mean(0)
        torch.testing.assert_close(parameter.double(), mean, rtol=1e-6, atol=1e-8)
    card = (tmp_path / "model" / "README.md").read_text()
    assert "mean of 3 checkpoints" in card
    assert all(f"- `{run.output.name}/{path.name}`" in card for path in chosen)
    assert str(run.output) not in card  # nor anywhere else in it


def test_single_checkpoints_and_the_default_output(run):
    newest = whole_checkpoints(run.output / "checkpoints")[-1]
    assert main(["average", str(run.output), str(newest), "--last", "1"]) == 0
    model = BnbForConditionalGeneration.from_pretrained(run.output / "average")
    for name, weight in read_weights(newest).items():
        assert torch.equal(model.state_dict()[name], weight)


def test_nothing_is_written_into_a_checkpoint(run, tmp_path, monkeypatch):
    """A checkpoints directory is its run; the default output of a checkpoint lies in its run too."""
    copied = shutil.copytree(run.output, tmp_path / "run", ignore=shutil.ignore_patterns("average"))
    newest = whole_checkpoints(copied / "checkpoints")[-1]
    before = sorted(newest.iterdir())
    monkeypatch.chdir(newest.parent)
    assert main(["average", newest.name, "--last", "1"]) == 0
    assert sorted(newest.iterdir()) == before
    alone = (copied / "average" / "README.md").read_text()
    assert "mean of 1 checkpoints" in alone
    shutil.rmtree(copied / "average")
    assert main(["average", str(copied / "checkpoints"), "--last", "3"]) == 0
    assert "mean of 3 checkpoints" in (copied / "average" / "README.md").read_text()


def test_runs_that_began_with_other_random_weights_are_refused(run, tmp_path, capsys):
    """Their weights mean nothing to each other, though the models look alike."""
    other = shutil.copytree(run.output, tmp_path / "other")
    recipe = yaml.safe_load((other / "config.resolved.yaml").read_text())
    for model, code in ((recipe["model"], 2), ({**recipe["model"], "size": None, "checkpoint": "begun"}, 0)):
        changed = yaml.safe_dump({**recipe, "seed": recipe["seed"] + 1, "model": model})
        for place, text in ((other, changed), (tmp_path / "first", yaml.safe_dump({**recipe, "model": model}))):
            if not place.exists():
                shutil.copytree(run.output, place)
            (place / "config.resolved.yaml").write_text(text)
        arguments = ["average", str(tmp_path / "first"), str(other), "--last", "1", "--output", str(tmp_path / "mean")]
        assert main(arguments) == code
        message = capsys.readouterr().err
        assert ("began with other random weights, whose mean is no model; average checkpoints of" in message) == (
            code == 2
        )


def test_too_few_checkpoints(run, capsys, tmp_path):
    message = refusal(capsys, run.output, "--last", "9", "--output", tmp_path / "model")
    assert "has 4 whole checkpoints, but --last is 9; give a smaller number" in message
    message = refusal(capsys, run.output, "--best", "9", "--output", tmp_path / "model")
    assert "has 4 evaluated checkpoints, but --best is 9; give a smaller number" in message
    assert not (tmp_path / "model").exists()


def test_another_model_is_refused(run, small_shards, fork_server, tmp_path, capsys):
    other = Job(tmp_path, small_shards)
    other.train_forked(fork_server, *INTERVALS, "model.latent_size=4", ranks=1)
    output = ("--output", tmp_path / "model")
    message = refusal(capsys, run.output, other.output, "--last", "1", *output)
    assert "its model is not that of" in message
    assert "latent_size differ; average checkpoints of one model" in message
    config = other.output / "model" / "config.json"
    config.write_bytes((run.output / "model" / "config.json").read_bytes())
    message = refusal(capsys, run.output, other.output, "--last", "1", *output)
    assert "for example in " in message
    config.unlink()
    assert "config.json: cannot be read; restore it" in refusal(
        capsys, run.output, other.output, "--last", "1", *output
    )
    newest = whole_checkpoints(run.output / "checkpoints")[-1]
    weights = next(iter((other.output / "checkpoints" / newest.name).glob("*model_states.pt")))
    weights.write_bytes(b"")
    assert "restore it, or give a smaller number" in refusal(capsys, other.output, "--last", "1", *output)
