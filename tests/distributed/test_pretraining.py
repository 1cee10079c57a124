"""Pre-train on CPU ranks, with and without the deepspeed launcher."""

from __future__ import annotations

import json
import signal

import pytest
import torch

from tests import launching
from tests.jobs import DS_CONFIG, Job

pytestmark = pytest.mark.slow

TAGS = {
    "train/loss",
    "train/lr",
    "train/grad_norm",
    "eval/loss",
    "eval/token_accuracy",
    "eval/bleu",
    "usage/tokens_per_second",
    "usage_mib/process",
    "train/mask_fraction",
}


def assert_same_training(job: Job, reference: Job) -> None:
    """Losses, learning rates and weights are bit-equal."""
    for tag in ("train/loss", "train/lr", "train/grad_norm", "eval/loss", "eval/token_accuracy"):
        assert job.scalars()[tag] == reference.scalars()[tag], tag
    theirs = reference.weights()
    for name, weight in job.weights().items():
        assert torch.equal(weight, theirs[name]), name


def test_every_tag_is_logged(whole_run):
    scalars = whole_run.scalars()
    phases = {tag for tag in scalars if tag.startswith("usage_seconds/")}
    assert set(scalars) - phases == TAGS
    assert phases >= {f"usage_seconds/{name}" for name in ("data", "forward", "backward", "optimizer", "evaluation")}
    assert [step for step, _ in scalars["train/loss"]] == list(range(1, 9))
    assert [step for step, _ in scalars["eval/loss"]] == [4, 8]
    assert scalars["train/loss"][-1][1] < scalars["train/loss"][0][1]
    assert all(0 < value < 1 for _, value in scalars["train/mask_fraction"])


def test_the_run_documents_itself(whole_run):
    (launch,) = [json.loads(line) for line in (whole_run.output / "launches.jsonl").read_text().splitlines()]
    assert launch["world_size"] == 2
    assert set(launch["packages"]) >= {"bnb_ds", "torch", "deepspeed", "transformers"}
    assert len(launch["data_fingerprint"]) == 64
    assert "--deepspeed_config" in launch["command"]
    resolved = json.loads((whole_run.output / "ds_config.resolved.json").read_text())
    assert resolved["gradient_accumulation_steps"] == 2
    assert "mask_probability: 0.15" in (whole_run.output / "config.resolved.yaml").read_text()


def test_a_killed_run_resumes_bit_equal(tmp_path, small_shards, fork_server, whole_run):
    job = Job(tmp_path, small_shards)
    launch = job.fork(fork_server)
    launch.wait_for((job.output / "checkpoints" / "step_00000003").exists)
    for rank in (0, 1):
        launch.kill(rank)
    launch.wait()
    assert not (job.output / "checkpoints" / "step_00000008").exists(), "killed too late to prove anything"
    job.train_forked(fork_server, "--resume", "auto")
    assert_same_training(job, whole_run)


def test_a_run_stopped_and_resumed_equals_an_uninterrupted_one(tmp_path, small_shards, fork_server, whole_run):
    job = Job(tmp_path, small_shards)
    assert "this launch ends at step 5" in job.train_forked(fork_server, "--stop-at", "5")
    job.train_forked(fork_server, "--resume", "auto")
    assert_same_training(job, whole_run)


def test_a_user_error_is_one_line_and_exit_code_2(tmp_path, small_shards):
    job = Job(tmp_path, small_shards)
    result = launching.run(job.command("data.max_lenght=5"))
    assert result.returncode == 2
    errors = [line for line in result.stderr.splitlines() if "pretrain.py: error" in line]
    assert errors == [f"pretrain.py: error: {job.recipe}: unknown key 'data.max_lenght': did you mean 'max_length'?"]
    assert "Traceback" not in result.stderr
    assert not job.output.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_saves_before_it_ends_like_the_script(tmp_path, small_shards, fork_server, number):
    """`bnb-ds` has signal handlers of its own, which `bnb-ds pretrain` replaces while it trains."""
    job = Job(tmp_path, small_shards)
    arguments = ["pretrain", *job.arguments("steps=100000", "intervals.checkpoint_steps=100000")]
    launch = fork_server.launch(arguments, tmp_path / "log", ranks=0, program="bnb-ds")
    launch.wait_for(lambda: job.last_step() >= 2)
    launch.kill(0, number)
    assert launch.wait() == [0], launch.text()
    assert "; continue with --resume auto" in launch.text()
    assert (job.output / "checkpoints" / "latest").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--world-size", "2"], "--world-size needs --dry-run; a real run takes the number of ranks from its launcher"),
        (["--stop-at", "0"], "argument --stop-at: a positive whole number is required, not 0"),
        (["--dry-run", "--world-size", "-1"], "argument --world-size: a positive whole number is required, not -1"),
        (["--resume-weights-only"], "--resume-weights-only needs --resume auto or --resume PATH"),
        (["--profile-steps", "5"], "--profile-steps 5: write it as FIRST:LAST, for example 100:104"),
    ],
)
def test_misuse_of_flags(tmp_path, small_shards, fork_server, arguments, message):
    job = Job(tmp_path, small_shards)
    code, text = fork_server.run("pretrain.py", job.arguments(*arguments), tmp_path / "log")
    assert code == 2
    assert message in text
    assert not job.output.exists()


def test_a_non_finite_loss_stops_the_run_and_names_the_batch(tmp_path, small_shards, fork_server):
    job = Job(tmp_path, small_shards, gradient_clipping=0.0)
    job.ds_config.write_text(
        json.dumps({**DS_CONFIG, "optimizer": {"type": "AdamW", "params": {"lr": 1e30}}, "gradient_clipping": 0.0})
    )
    launch = job.fork(fork_server)
    assert launch.wait() == [2, 2], launch.text()
    assert "pretrain.py: error: step 2: the loss is nan in the micro batch of samples [" in launch.text()
    (record,) = job.output.glob("nonfinite_step_*.json")
    assert json.loads(record.read_text())["step"] == 2
