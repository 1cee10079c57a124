"""How often the host waits for the device in a training step and in generation: a new wait makes a test fail."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bnb_ds.ctc import recursion
from bnb_ds.ctc import viterbi as ctc_viterbi
from bnb_ds.dag import alignment as dag_alignment
from bnb_ds.dag.alignment import Problem
from bnb_ds.data.batch import PackedBatch, batch_of_texts
from bnb_ds.decoding.decode import generate, generate_rows
from bnb_ds.decoding.options import DecodeOptions
from bnb_ds.distributed import ranks
from bnb_ds.model.classification import BnbForSequenceClassification
from bnb_ds.model.target_rules import BnbTargetRules
from bnb_ds.modeling import BnbForPretraining
from bnb_ds.train.objectives import ObjectiveSettings, Reconstruction
from bnb_ds.train.phases import Phases
from bnb_ds.train.spikes import SpikeDetector
from bnb_ds.train.step import StepStats, TrainStep
from tests import tiny
from tests.stand_in import ELSEWHERE, Far, elsewhere, moved

pytestmark = pytest.mark.slow

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
TOKENS = {"decoder_tokens": True, "mask_token_id": 4}
PREDICTED = {"decoder_length": "predicted", "length_difference_min": -6, "length_difference_max": 6}
GRAPH = {"target": "dag", "decoder_length_ratio": 2.0}
MODELS = {
    "ctc": {},
    "ctc, smoothed, over samples": {"kl_weight": 0.1, "loss_reduction": "sample"},
    "ctc, glancing": TOKENS,
    "ctc, deep supervision": {"deep_supervision": True},
    "ctc, predicted lengths": PREDICTED,
    "one token a slot": {**PREDICTED, "target": "token"},
}
SOURCES, TARGETS = ([5, 3, 9], [6, 1]), ([3, 2, 4], [5, 1])


def model_of(settings: dict[str, Any]):
    parts = {part: {**NO_DROPOUT, **settings.get(part, {})} for part in ("encoder", "decoder")}
    return tiny.bnb_model(latent_dropout=0.0, **{**settings, **parts})


class Engine:
    """What `TrainStep` needs of DeepSpeed's engine at ZeRO stage 0 in fp32, without waits of its own."""

    def __init__(self, model: torch.nn.Module):
        self.module = model.train()

    def __call__(self, **inputs: Any) -> Any:
        return self.module(**inputs)

    def backward(self, loss: torch.Tensor) -> None:
        (loss / self.gradient_accumulation_steps()).backward()

    @torch.no_grad()
    def step(self) -> None:
        if self._last:
            for parameter in self.module.parameters():
                parameter -= 0.1 * parameter.grad

    def set_gradient_accumulation_boundary(self, last: bool) -> None:
        self._last = last

    def gradient_accumulation_steps(self) -> int:
        return 2

    def get_lr(self) -> list[float]:
        return [0.1]

    def zero_optimization_stage(self) -> int:
        return 0

    def fp16_enabled(self) -> bool:
        return False

    bfloat16_enabled = fp16_enabled


def batches(config: Any, times: int) -> list[PackedBatch]:
    made = []
    for number, (sources, targets) in enumerate(zip(SOURCES, TARGETS, strict=True)):
        lengths = ([times * length for length in part] for part in (sources, targets))
        rows = [tiny.source_ids(part, seed=number + more) for part, more in zip(lengths, (0, 5), strict=True)]
        arguments = [
            each
            for of_rows in rows
            for each in (torch.cat(of_rows).numpy(), np.cumsum([0, *map(len, of_rows)], dtype=np.int64))
        ]
        made.append(
            batch_of_texts(
                *arguments,
                BnbTargetRules(config),
                sample_ids=np.arange(len(sources)),
                num_ordinary=1,
                num_masked=0,
                noise_keys=np.arange(len(sources), dtype=np.uint64),
            )
        )
    return made


def take_step(
    model: Any, device: torch.device, records: Path, spikes=None, glancing=None, times: int = 1
) -> tuple[StepStats, dict]:
    """Of texts that are ``times`` as long."""
    step = TrainStep(
        Engine(model),
        Reconstruction(ObjectiveSettings(glancing)),
        lambda batch: 1,
        device=device,
        seed=0,
        phases=Phases(torch.device("cpu")),
        spikes=spikes,
        records=records,
    )
    return step.take(1, batches(model.config, times), stop=False)


@pytest.mark.parametrize("name", MODELS)
def test_a_training_step_waits_once_at_its_end(name, tmp_path, monkeypatch):
    # The plain recurrence stands for the kernel of the best path.
    monkeypatch.setattr(ctc_viterbi, "best_states", recursion.best_states)
    model = model_of(MODELS[name])
    glancing = (lambda step: 0.5) if "glancing" in name else None
    with elsewhere(monkeypatch) as waits:
        far = moved(model)
        stats, measures = take_step(far, ELSEWHERE, tmp_path, glancing=glancing)
        assert len(waits) == 1, waits
        assert waits[0].endswith("train/step.py:_read < train/step.py:take")
        weights = {key: value.held for key, value in far.state_dict().items()}
    known, known_measures = take_step(model, torch.device("cpu"), tmp_path, glancing=glancing)
    assert stats.loss_sum == pytest.approx(known.loss_sum, rel=1e-9)
    assert (stats.count, stats.fingerprint) == (known.count, known.fingerprint)
    assert measures == pytest.approx(known_measures, rel=1e-9)
    for key, value in model.state_dict().items():
        torch.testing.assert_close(weights[key], value, rtol=1e-9, atol=1e-12)


def on_the_device(monkeypatch):
    """The plain recurrence stands for the kernel of a graph's loss."""

    def of_all(launch, *given):
        nll, posteriors = dag_alignment._in_logs(Problem(*given[:5]), given[5])
        return nll, *((None, None) if posteriors is None else posteriors[:2])

    monkeypatch.setattr(dag_alignment, "launch_of", lambda device, kernel: None if device.type == "cpu" else of_all)
    monkeypatch.setattr(dag_alignment, "forward_backward", of_all)


@pytest.mark.parametrize(("has_kernel", "kind"), [(True, "aten::nonzero"), (False, "aten::_to_copy")])
def test_a_graph_waits_once_more_in_a_micro_step(has_kernel, kind, tmp_path, monkeypatch):
    """For the number of slots whose gradients matter; without a kernel, for the operands of the recurrence."""
    if has_kernel:
        on_the_device(monkeypatch)
    with elsewhere(monkeypatch) as waits:
        take_step(moved(model_of(GRAPH)), ELSEWHERE, tmp_path)
        assert [wait.split()[0] for wait in waits] == [kind] * 2 + ["tolist"]


def test_glancing_without_a_kernel_waits_once_more_in_a_micro_step(tmp_path, monkeypatch):
    with elsewhere(monkeypatch) as waits:
        take_step(moved(model_of(MODELS["ctc, glancing"])), ELSEWHERE, tmp_path, glancing=lambda step: 0.5)
        assert [wait.split()[0] for wait in waits] == ["aten::_to_copy"] * 2 + ["tolist"]


def test_the_counts_are_added_up_while_the_first_micro_batch_runs(tmp_path, monkeypatch):
    events = []

    def start_all_sum(tensor):
        events.append("begin")
        return lambda: events.append("finish") or tensor

    monkeypatch.setattr(ranks, "start_all_sum", start_all_sum)
    backward = Engine.backward
    monkeypatch.setattr(
        Engine, "__call__", lambda engine, **inputs: events.append("forward") or engine.module(**inputs)
    )
    monkeypatch.setattr(Engine, "backward", lambda engine, loss: events.append("backward") or backward(engine, loss))
    take_step(model_of({}), torch.device("cpu"), tmp_path)
    assert events[:4] == ["begin", "forward", "finish", "backward"]
    assert events.count("begin") == 1


def test_a_run_that_skips_spikes_waits_once_more(tmp_path, monkeypatch):
    with elsewhere(monkeypatch) as waits:
        take_step(moved(model_of({})), ELSEWHERE, tmp_path, spikes=SpikeDetector(2.0, 1))
        assert [wait.split(" at ")[1] for wait in waits] == ["train/step.py:_read < train/step.py:take"] * 2


@pytest.mark.parametrize("kind", ["labels", "masked tokens"])
def test_other_losses_wait_nowhere(kind, monkeypatch):
    lengths = torch.tensor([0, 5, 8], dtype=torch.int32)
    ids = torch.cat(tiny.source_ids([5, 3]))
    torch.manual_seed(0)
    if kind == "labels":
        model = BnbForSequenceClassification(tiny.bnb_config(encoder=NO_DROPOUT, num_labels=3))
        given = {"labels": torch.tensor([2, 0])}
    else:
        model = BnbForPretraining(tiny.bnb_config(encoder=NO_DROPOUT, decoder=NO_DROPOUT, latent_dropout=0.0))
        given = {"masked_index": torch.tensor([1, 6]), "masked_labels": torch.tensor([9, 7]), "labels": ids}
    more = {} if kind == "labels" else {"label_lengths": torch.tensor([5, 3])}

    def loss_of(model, device):
        there = {name: tensor.to(device, non_blocking=True) for name, tensor in {"input_ids": ids, **given}.items()}
        output = model.train()(**there, cu_seqlens=lengths, **more)
        loss = output.loss_sum if kind == "labels" else output.loss_sum + output.encoder_mlm_sum
        loss.backward()
        return loss

    with elsewhere(monkeypatch) as waits:
        far = loss_of(moved(model), ELSEWHERE)
        assert waits == []
    torch.testing.assert_close(far.held, loss_of(model, "cpu"))


def test_each_wait_is_seen(monkeypatch):
    ways = {
        "item": lambda far: far[0].item(),
        "bool": lambda far: bool((far > 0).any()),
        "a list": lambda far: far.tolist(),
        "to the host": lambda far: far.cpu(),
        "copied to the host": lambda far: torch.empty(3, dtype=torch.int64).copy_(far),
        "nonzero": lambda far: far.nonzero(),
        "a mask as index": lambda far: far[far > 1],
        "a masked assignment": lambda far: far.__setitem__(far > 1, 5),
        "an index from the host": lambda far: far[torch.tensor([0, 2])],
        "from the host": lambda far: torch.ones(3).to(far.device),
        "a new tensor": lambda far: torch.tensor([1, 2], device=far.device),
        "a tensor like it": lambda far: far.new_tensor([1]),
        "unique": lambda far: far.unique(),
        "repeats": lambda far: far.repeat_interleave(far),
        "equal": lambda far: torch.equal(far, far),
    }
    for name, way in ways.items():
        with elsewhere(monkeypatch) as waits:
            way(Far(torch.tensor([1, 2, 1])))
        assert len(waits) == 1, (name, waits)
    with elsewhere(monkeypatch), pytest.raises(AssertionError, match="without values"):
        Far(torch.tensor([1, 2, 1]))[[0, 2]]  # torch makes the index from the list, unseen
    with elsewhere(monkeypatch) as waits:
        far = Far(torch.tensor([1, 2, 1]))
        kept = torch.where(far > 1, far, 0)[far].repeat_interleave(far, output_size=4).cumsum(0)
        kept[:2] = torch.ones(2).to(far.device, non_blocking=True)
        assert kept.held.tolist() == [1, 1, 2, 4]
    assert waits == []


# Inference mode has no place for the stand-in's tensors.
plain_generate, plain_generate_rows = (torch.no_grad()(way.__wrapped__) for way in (generate, generate_rows))
GENERATE = {
    # lengths of the sources, and outputs
    "greedy": ({}, {}, {}, 2),
    # what outputs share
    "greedy, scores": ({}, {}, {"return_scores": True}, 3),
    "refined": (TOKENS, {"refinement": 2}, {}, 2),
    # the best classes of the slots
    "beam": ({}, {"beam_size": 3}, {}, 3),
    # the outputs of the greedy way, which may break the limit
    "limited": ({}, {"max_length": 30}, {}, 3),
    # the predicted lengths
    "one token a slot": (MODELS["one token a slot"], {}, {}, 3),
    "graph": (GRAPH, {}, {}, 2),
    # the best tokens and links, without a kernel
    "graph, best path": (GRAPH, {"strategy": "joint_viterbi"}, {}, 3),
    # the sources, from which draws come, and how many slots are on the paths
    "graph, sampled": (GRAPH, {"strategy": "sample"}, {}, 4),
    # the candidates of all slots, and the links
    "graph, beam": (GRAPH, {"strategy": "beam"}, {}, 3),
    # the longest output, and the operands of the recurrence, without a kernel
    "graph, scores": (GRAPH, {}, {"return_scores": True}, 4),
    "a beam of lengths": (MODELS["one token a slot"], {"length_beam": 3}, {}, 3),
}


@pytest.mark.parametrize("name", GENERATE)
def test_generation_waits_where_it_says_so(name, monkeypatch):
    settings, options, more, number = GENERATE[name]
    model = model_of(settings)
    inputs = tiny.padded_form(tiny.source_ids([5, 3, 9]))
    expected = generate(model, **inputs, **options, **more)
    with elsewhere(monkeypatch) as waits:
        there = {key: value.to(ELSEWHERE, non_blocking=True) for key, value in inputs.items()}
        got = plain_generate(moved(model), **there, **options, **more)
        assert len(waits) == number, waits
        for ours, known in zip(*(x.values() if more else [x] for x in (got, expected)), strict=True):
            torch.testing.assert_close(ours.held, known, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("with_scores", "number"), [(False, 1), (True, 4)])
def test_generation_of_lists_waits_for_the_outputs_of_all_batches_at_once(with_scores, number, monkeypatch):
    model = model_of({})
    rows = [row.tolist() for row in tiny.source_ids([5, 3, 9, 2])]
    options = DecodeOptions(token_budget=60)  # two batches
    expected = generate_rows(copy.deepcopy(model), rows, options, with_scores=with_scores)
    with elsewhere(monkeypatch) as waits:
        got = plain_generate_rows(moved(model), rows, options, with_scores=with_scores)
        assert len(waits) == number, waits
    assert [ids for ids, _ in got] == [ids for ids, _ in expected]
    if with_scores:
        assert [score for _, score in got] == pytest.approx([score for _, score in expected], rel=1e-9)
