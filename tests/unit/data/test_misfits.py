"""Targets that do not fit into the decoder's slots: counted before a run, told, and never scored as a loss of 0."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from bnb_ds.data.misfits import Misfits, count_misfits, length_lines, misfit_lines, refuse_misfits
from bnb_ds.errors import ConfigError
from bnb_ds.evaluate.split import evaluate_split
from bnb_ds.modeling import BnbForConditionalGeneration
from bnb_ds.pretrain.evaluation import evaluate
from bnb_ds.pretrain.plan import targets_that_do_not_fit
from bnb_ds.shards.reader import TokenShards
from bnb_ds.systems.bnb import BnbGenerator, BnbModelSection
from bnb_ds.systems.task_samples import TaskSamples
from bnb_ds.tasks.codec import Codec
from bnb_ds.tasks.data_section import TaskDataSection
from bnb_ds.tasks.registry import get_task
from bnb_ds.tasks.text_lengths import Lengths
from bnb_ds.tasks.tokenised import tokenise
from tests.tiny import bnb_config
from tests.unit.data.test_samples import make_samples
from tests.unit.tasks.test_tokenised import SIZE


def test_all_samples_are_counted_or_some_of_them_evenly():
    def odd(ids):
        return int((ids % 2).sum())

    marks = []
    assert count_misfits(odd, 10_001, progress=lambda: marks.append(1)) == Misfits(5000, 10_001, 10_001)
    assert len(marks) == 3
    assert count_misfits(odd, 101, most=11) == Misfits(0, 11, 101)  # 0, 10, 20, ... 100
    assert count_misfits(odd, 3, most=11) == Misfits(1, 3, 3)


def test_what_is_told():
    train, heldout = Misfits(51, 1000, 1000), Misfits(5, 100, 7000)
    first, warning = misfit_lines({"train": train, "heldout": heldout})
    assert first == "slots        targets that do not fit: train 51 of 1,000 (5.1%), heldout 5 of 100 looked at (5.0%)"
    assert warning.startswith("warning      5.1% of the targets of train do not fit into the decoder's slots and add")
    assert "raise model.decoder_length_ratio, or cut the targets" in warning
    refuse_misfits({"train": Misfits(50, 100, 100)})
    with pytest.raises(
        ConfigError,
        match=r"model\.decoder_length_ratio: 51 of 100 \(51\.0%\) targets of the test split do not fit .* raise it",
    ):
        refuse_misfits({"train": train, "test": Misfits(51, 100, 100)})


@pytest.fixture
def split_and_system(tmp_path, small_tokenizer):
    """40 summaries, and a model for them. Those of the 8 shortest documents need more than half as many slots."""
    path = tmp_path / "a.jsonl"
    rows = [{"document": "the value of the object " * (1 + i % 5), "summary": f"the value {i}"} for i in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = get_task("summarization")
    data = TaskDataSection(
        train=str(path), cache_dir=str(tmp_path / "cache"), max_source_length=64, max_target_length=64
    )
    codec = Codec(small_tokenizer, small_tokenizer)

    def make(**model):
        section = BnbModelSection(kind="bnb", size=SIZE, **model)
        return tokenise(task, data, "train", codec), BnbGenerator(task, Lengths.of(task, data), codec, section)

    return make


def test_rows_of_a_task_are_counted_as_their_batches_count(split_and_system):
    split, system = split_and_system(decoder_length_ratio=0.5)
    samples, ids = TaskSamples(split, system), np.arange(40)
    assert 0 < samples.num_infeasible(ids) < 40
    assert samples.num_infeasible(ids) == samples.batch(ids, np.zeros(40, np.int64)).num_infeasible


def test_samples_of_pre_training_are_counted_as_their_batches_count(small_shards):
    shards = TokenShards(small_shards, "train")
    (line,) = targets_that_do_not_fit(make_samples(shards), make_samples(shards))
    assert line.endswith("train 0 of 216 (0.0%), heldout 0 of 216 (0.0%)")
    one_slot = {"decoder_length_max": 17, "decoder_length_min": 17}  # too few where two neighbours are equal
    some = make_samples(shards, max_length=17, model=one_slot)
    ids = np.arange(len(some))
    assert 0 < some.num_infeasible(ids) == some.batch(ids, np.zeros_like(ids)).num_infeasible < len(some) / 2
    with pytest.raises(ConfigError, match=r"216 of 216 \(100\.0%\) targets of the heldout split do not fit"):
        targets_that_do_not_fit(make_samples(shards), make_samples(shards, ratio=0.5))


def test_rows_whose_length_has_no_class_are_told(split_and_system):
    """Sources of 7 to 27 tokens, targets of 5: the model learns the nearest class, which is another length."""
    fields = {"decoder_length": "predicted", "length_difference_min": -12, "length_difference_max": 0}
    split, system = split_and_system(**fields)
    ids = np.arange(40)
    differences = split.target_lengths(ids) - split.source_lengths(ids)
    expected = int(((differences < -12) | (differences > 0)).sum())
    assert 0 < expected < 40
    samples = TaskSamples(split, system)
    assert samples.num_without_length(ids) == expected
    (warning,) = length_lines({"train": count_misfits(samples.num_without_length, 40)})
    assert warning.startswith(
        f"warning      {expected / 40:.1%} of the targets of train differ more in length from their "
    )
    assert TaskSamples(*split_and_system()).num_without_length(ids) == 0


def test_samples_of_pre_training_whose_length_has_no_class_are_told(small_shards):
    shards = TokenShards(small_shards, "train")
    fields = {"decoder_length": "predicted", "length_difference_min": 1, "length_difference_max": 3}
    samples = make_samples(shards, model=fields)
    assert samples.num_without_length(np.arange(len(samples))) == len(samples)  # nothing is left out: a difference of 0
    _, *warnings = targets_that_do_not_fit(samples, make_samples(shards))
    (warning,) = warnings
    assert warning.startswith(
        "warning      100.0% of the targets of train differ more in length from their sources than"
    )


class Engine(nn.Module):
    """As much of a DeepSpeed engine as an evaluation uses."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, **inputs):
        return self.module(**inputs)


@pytest.mark.parametrize("reduction", ["token", "sample"])
@pytest.mark.parametrize("ratio", [0.5, 2.0])
def test_held_out_samples_without_a_target_that_fits_have_no_loss(small_shards, reduction, ratio):
    """With a loss of 0 they would be the best model."""
    shards = TokenShards(small_shards, "heldout")
    fields = {"loss_reduction": reduction, "decoder_length_ratio": ratio}
    sizes = {"vocab_size": shards.vocab_size}
    model = BnbForConditionalGeneration(bnb_config(sizes, sizes, **fields))
    samples = make_samples(shards, ratio=ratio, model={"loss_reduction": reduction})
    scores = evaluate(Engine(model), samples, num_samples=9, micro_batch=4, device=torch.device("cpu"))
    assert scores["eval/loss_samples"] == (9 if ratio == 2.0 else 0)
    assert math.isnan(scores["eval/loss"]) == (ratio == 0.5)


@pytest.mark.parametrize(("ratio", "expected"), [(0.5, 32), (0.05, 0), (2.0, 40)])
def test_a_split_says_over_how_many_samples_its_loss_is(split_and_system, ratio, expected):
    split, system = split_and_system(decoder_length_ratio=ratio)
    split.references = lambda: ["the value"] * 40  # those of train are not kept
    results = evaluate_split(system, system.build(), split, batch_size=16, device=torch.device("cpu"))
    assert results.loss_samples == expected
    assert math.isnan(results.loss) == (expected == 0)
