"""Whole programs on GPUs: training over NCCL at every ZeRO stage, resume, a hanging rank, generation, the service."""

from __future__ import annotations

import os
import shutil
import signal

import pytest
import torch

from bnb_ds.generate.pipeline import BnbPipeline
from bnb_ds.train.fused import find_apex
from tests import launching
from tests.exports import save_model
from tests.jobs import Job
from tests.serving import running

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
DEVICE = "cuda"
QUIET = ["model.hidden_dropout=0", "model.attention_dropout=0"]
needs_two = pytest.mark.skipif(
    torch.cuda.device_count() < 2, reason="NCCL takes a GPU for one rank only: two ranks need two GPUs"
)
RANKS = [1, pytest.param(2, marks=needs_two)]


def half() -> dict:
    """The 16-bit precision of this GPU, as a block of the DeepSpeed JSON."""
    if torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0):
        return {"bf16": {"enabled": True}}
    return {"fp16": {"enabled": True, "initial_scale_power": 8}}


def run(job: Job, *arguments: str, ranks: int = 1) -> str:
    """Run a job to its end, and return what it printed."""
    result = launching.run(job.command(*arguments, ranks=ranks), env=launching.environment(DS_ACCELERATOR=DEVICE))
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def losses(job: Job) -> list[float]:
    return [loss for _, loss in job.scalars()["train/loss"]]


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_every_zero_stage_learns_in_16_bits(tmp_path, small_shards, stage, ranks):
    zero = {"stage": stage, "stage3_param_persistence_threshold": 0} if stage == 3 else {"stage": stage}
    job = Job(tmp_path, small_shards, zero_optimization=zero, **half())
    run(job, "steps=20", ranks=ranks)
    assert losses(job)[-1] < losses(job)[0]
    assert all(weight.isfinite().all() for weight in job.weights().values())


@pytest.mark.parametrize("ranks", RANKS)
def test_a_resumed_run_is_that_of_a_whole_one(tmp_path, small_shards, ranks):
    whole, cut = Job(tmp_path, small_shards, "whole"), Job(tmp_path, small_shards, "cut")
    run(whole, *QUIET, ranks=ranks)
    run(cut, *QUIET, "--stop-at", "4", ranks=ranks)
    run(cut, *QUIET, "--resume", "auto", ranks=ranks)
    assert losses(cut) == pytest.approx(losses(whole), rel=1e-5)


@needs_two
def test_one_rank_goes_on_where_two_were(tmp_path, small_shards):
    whole, cut = Job(tmp_path, small_shards, "whole"), Job(tmp_path, small_shards, "cut")
    run(whole, *QUIET, ranks=2)
    run(cut, *QUIET, "--stop-at", "4", ranks=2)
    run(cut, *QUIET, "--resume", "auto", ranks=1)
    assert losses(cut) == pytest.approx(losses(whole), rel=1e-4)


@pytest.mark.parametrize("ranks", RANKS)
def test_a_rank_that_is_stopped_ends_the_job(tmp_path, small_shards, ranks):
    job = Job(tmp_path, small_shards)
    command = job.command("steps=100000", "faults.silence_seconds=10", "intervals.eval_steps=100000", ranks=ranks)
    process = launching.start(command, env=launching.environment(DS_ACCELERATOR=DEVICE))
    try:
        launching.wait_for(lambda: job.last_step() >= 3, process)
        victim = launching.find_ranks(process.pid)[-1]
        os.kill(victim, signal.SIGSTOP)
        output, errors = process.communicate(timeout=120)
        assert process.returncode != 0
        assert "has not run for 10 s" in output + errors
    finally:
        launching.kill(process)


def test_apex_is_used_and_learns(tmp_path, small_shards):
    apex = find_apex()
    if not apex.usable:
        pytest.skip(apex.description)
    job = Job(tmp_path, small_shards, **half())
    assert "apex FusedAdam (AdamW); apex FusedLayerNorm" in run(job, "steps=20")
    assert losses(job)[-1] < losses(job)[0]


def test_an_offloaded_optimizer_learns(tmp_path, small_shards):
    if shutil.which("c++") is None:
        pytest.skip("DeepSpeed compiles its CPU Adam, and there is no c++")
    zero = {"stage": 2, "offload_optimizer": {"device": "cpu"}}
    job = Job(tmp_path, small_shards, zero_optimization=zero, **half())
    assert "DeepSpeed CPUAdam (offloaded)" in run(job, "steps=20")
    assert losses(job)[-1] < losses(job)[0]


@pytest.fixture(scope="module")
def exported(small_tokenizer, tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("cuda") / "model", small_tokenizer)


@pytest.fixture
def lines(tmp_path, small_texts):
    path = tmp_path / "in.txt"
    path.write_text("".join(f"{text[:80]}\n" for text in small_texts[:300]))
    return path


def generated(exported, lines, name: str, *arguments: str) -> str:
    target = lines.with_name(name)
    command = ["bnb-ds", "generate", str(exported), "--input", str(lines), "--output", str(target), *arguments]
    result = launching.run(command, env=launching.environment())
    assert result.returncode == 0, result.stdout + result.stderr
    return target.read_text()


def test_processes_share_a_file_and_write_what_the_cpu_writes(exported, lines):
    shared = generated(exported, lines, "shared", "--device", DEVICE, "--processes", "2")
    assert shared == generated(exported, lines, "alone", "--device", DEVICE)
    # A model of random weights has near ties, and a GPU adds up in another order.
    known = generated(exported, lines, "cpu", "--device", "cpu").splitlines()
    same = sum(ours == theirs for ours, theirs in zip(shared.splitlines(), known, strict=True))
    assert same >= 0.95 * len(known)


def test_the_service_answers_from_the_gpu(exported, small_texts):
    texts = [text[:60] for text in small_texts[:20]]
    pipeline = BnbPipeline.from_pretrained(exported, device=DEVICE)
    with running(pipeline) as client:
        answers = [client.post("/generate", json={"texts": texts[i : i + 4]}) for i in range(0, 20, 4)]
    assert [answer.status_code for answer in answers] == [200] * 5
    outputs = [output["text"] for answer in answers for output in answer.json()["outputs"]]
    assert outputs == pipeline(texts)
