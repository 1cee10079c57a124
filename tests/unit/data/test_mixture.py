"""Several shard directories read with weights: shares exact in every epoch, order and resume as for one directory."""

from __future__ import annotations

import json
import shutil
from itertools import chain

import numpy as np
import pytest
from scipy.stats import chisquare

from bnb_ds.checkpoint.run_dir import RunDir
from bnb_ds.config.loading import load_recipe
from bnb_ds.data.loader import StepLoader
from bnb_ds.data.sequences import make_index
from bnb_ds.data.streams import MixedStream, SampleStream, quotas
from bnb_ds.errors import ConfigError, DataError
from bnb_ds.pretrain.plan import describe_dry_run, make_plan
from bnb_ds.shards.mixed import MixedShards
from bnb_ds.shards.reader import TokenShards
from tests.shard_helpers import document, writer

BUILDINGS = ("truncate", "chunk", "pack")


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    """Three corpora of other sizes and lengths, with one tokenizer; every token says which corpus it is of."""
    found = {}
    for name, first, lengths in (("a", 10, [3, 9, 1, 14, 6, 6, 2]), ("b", 40, [20, 5]), ("c", 70, [4] * 11)):
        found[name] = tmp_path_factory.mktemp(name) / "shards"
        with writer(found[name], tokens_per_shard=16) as shard_writer:
            for i, length in enumerate(lengths):
                shard_writer.add(document(*(first + (i * 7 + np.arange(length)) % 30)), "train")
    return found


@pytest.fixture
def mixed(directories):
    return MixedShards(
        {str(directories[name]): weight for name, weight in zip("abc", (3, 1, 0.5), strict=True)}, "train"
    )


@pytest.mark.parametrize("building", BUILDINGS)
def test_a_mixture_holds_the_samples_of_its_parts_in_order(mixed, directories, building):
    index = make_index(building, mixed, 8)
    parts = [make_index(building, TokenShards(directories[name], "train"), 8) for name in "abc"]
    assert index.sizes == [len(part) for part in parts]
    everything = np.arange(len(index))
    assert index.lengths(everything).tolist() == list(chain(*(p.lengths(np.arange(len(p))).tolist() for p in parts)))
    pieces = index.pieces(everything)
    assert np.unique(pieces.ids).size == pieces.ids.size  # each has noise of its own
    firsts = np.cumsum([0, 7, 2])
    alone = [part.pieces(np.arange(len(part))) for part in parts]
    assert pieces.per_sample.tolist() == list(chain(*(p.per_sample.tolist() for p in alone)))
    wanted = list(chain(*((p.documents + first).tolist() for p, first in zip(alone, firsts, strict=True))))
    assert pieces.documents.tolist() == wanted
    # Any samples in any order are the same samples.
    some = np.random.default_rng(1).permutation(everything)[:9]
    found, ends = index.pieces(some), np.cumsum(pieces.per_sample)
    spans = np.stack([pieces.documents, pieces.begins, pieces.sizes])
    expected = np.concatenate([spans[:, ends[i] - pieces.per_sample[i] : ends[i]] for i in some], axis=1)
    assert np.array_equal(np.stack([found.documents, found.begins, found.sizes]), expected)
    assert index.lengths(some).tolist() == index.lengths(everything)[some].tolist()


def test_documents_are_read_from_their_own_directory(mixed, directories):
    parts = [TokenShards(directories[name], "train") for name in "abc"]
    documents = np.array([19, 0, 8, 7, 9, 3])
    everything = [part.document(i) for part in parts for i in range(len(part))]
    expected = [everything[i][:2].tolist() for i in documents]
    sizes = np.array([len(row) for row in expected])
    places = np.cumsum(sizes) - sizes
    out = np.zeros(sizes.sum(), dtype=mixed.token_dtype)
    mixed.read(documents, np.zeros_like(documents), sizes, out, places)
    assert out.tolist() == list(chain(*expected))
    assert mixed.num_tokens == sum(part.num_tokens for part in parts)


def plain_stream(sizes, weights, seed, count):
    """The mixture, position by position: whose turn it is, then that corpus's own next sample."""
    total, numbers = sum(sizes), quotas(sum(sizes), weights)
    owners = np.repeat(np.arange(len(sizes)), numbers)
    places, ids, epochs = [], [], []
    for epoch in range(-(-count // total)):
        places += [(epoch, place) for place in SampleStream(total, seed).read(epoch * total, total)[0].tolist()]
    firsts, begins = np.cumsum([0, *sizes]), np.cumsum([0, *numbers])
    for epoch, place in places[:count]:
        corpus = int(owners[place])
        consumed = epoch * numbers[corpus] + place - begins[corpus]
        ids.append((corpus, consumed % sizes[corpus], int(firsts[corpus])))
        epochs.append(consumed // sizes[corpus])
    return ids, epochs


@pytest.mark.parametrize(("sizes", "weights"), [([7, 2, 11], [3, 1, 0.5]), ([40, 3], [0.1, 0.9]), ([5, 5], [1, 1])])
def test_every_epoch_has_its_shares_to_the_sample(sizes, weights):
    total = sum(sizes)
    ids, epochs = MixedStream(sizes, weights, seed=3).read(0, 6 * total)
    plain, plain_epochs = plain_stream(sizes, weights, 3, 6 * total)
    assert epochs.tolist() == plain_epochs
    corpora = np.searchsorted(np.cumsum(sizes), ids, side="right")
    assert corpora.tolist() == [corpus for corpus, _, _ in plain]
    for epoch in range(6):
        counts = np.bincount(corpora[epoch * total : (epoch + 1) * total], minlength=len(sizes))
        assert counts.tolist() == quotas(total, weights)
    for corpus, size in enumerate(sizes):
        # A corpus is read whole before any of it is read again: its last epoch alone is unfinished.
        own, own_epochs = ids[corpora == corpus], epochs[corpora == corpus]
        for epoch in range(int(own_epochs.max())):
            first = sum(sizes[:corpus])
            assert sorted(own[own_epochs == epoch].tolist()) == list(range(first, first + size))


def test_the_stream_depends_on_the_position_alone():
    stream = MixedStream([50, 20, 9], [2, 1, 1], seed=1)
    ids, epochs = stream.read(0, 400)
    for begin, count in ((0, 1), (77, 3), (78, 160), (399, 1)):
        some, some_epochs = stream.read(begin, count)
        assert some.tolist() == ids[begin : begin + count].tolist()
        assert some_epochs.tolist() == epochs[begin : begin + count].tolist()
    assert MixedStream([50, 20, 9], [2, 1, 1], seed=2).read(0, 400)[0].tolist() != ids.tolist()


def test_shares_within_an_epoch_are_those_of_chance():
    """200 windows of 250 samples: their counts are spread as draws without replacement are."""
    weights = np.array([0.6, 0.3, 0.1])
    ids, _ = MixedStream([60_000, 30_000, 10_000], weights.tolist(), seed=11).read(0, 50_000)
    corpora = np.searchsorted(np.cumsum([60_000, 30_000, 10_000]), ids, side="right")
    counts = np.stack([np.bincount(window, minlength=3) for window in corpora.reshape(200, 250)])
    assert chisquare(counts.sum(0), 50_000 * weights).pvalue > 0.01
    statistics = ((counts - 250 * weights) ** 2 / (250 * weights)).sum(1)  # chi-square with 2 degrees of freedom each
    assert 1.7 < statistics.mean() < 2.3
    assert 0.03 < (statistics > 5.99).mean() < 0.08
    # Neighbouring positions do not know of each other.
    pairs = np.bincount(3 * corpora[:-1] + corpora[1:], minlength=9)
    assert chisquare(pairs, 49_999 * np.outer(weights, weights).ravel()).pvalue > 0.01


class Recorded:
    """A source whose batches hold the requested ids and epochs."""

    def stream(self, seed):
        return MixedStream([30, 13], [1, 2], seed)

    def lengths(self, sample_ids):
        return sample_ids * 7 % 5

    def batch(self, sample_ids, epochs):
        return list(zip(sample_ids.tolist(), epochs.tolist(), strict=True))


def test_ranks_micro_batches_and_a_resume_change_nothing():
    def steps(begin, world_size, micro_batch):
        loaders = [
            StepLoader(
                Recorded(),
                seed=5,
                micro_batch=micro_batch,
                accumulation_steps=12 // micro_batch // world_size,
                rank=rank,
                world_size=world_size,
            )
            for rank in range(world_size)
        ]
        return [
            sorted(sample for loader in loaders for batch in loader.step(position) for sample in batch)
            for position in range(begin, 240, 12)
        ]

    whole = steps(0, 1, 12)
    assert steps(0, 3, 2) == whole
    assert steps(96, 2, 3) == whole[8:]


def test_weights_that_leave_nothing_and_other_faults(directories, tmp_path, small_shards):
    with pytest.raises(
        ConfigError, match=r"the weight 1e-06 gives its directory none of 20 samples; raise it, or leave"
    ):
        quotas(20, [1, 1e-6])
    a, b = str(directories["a"]), str(shutil.copytree(directories["a"], tmp_path / "b"))
    with pytest.raises(
        DataError, match=rf"data.shards: {small_shards} was made with another tokenizer than {a}; prepare"
    ):
        MixedShards({a: 1, str(small_shards): 1}, "train")
    with pytest.raises(DataError, match=rf"data.shards: {b} has the same content as {a}; name it once"):
        MixedShards({a: 1, b: 1}, "train")


@pytest.mark.parametrize(
    ("shards", "message"),
    [
        ("{}", "data.shards: give a directory, or several with weights: {work/shards/a: 3, work/shards/b: 1}"),
        ("[a, b]", "data.shards: give a directory, or several with weights"),
        ("{a: 0, b: 1}", "data.shards: the weight of a is 0: give a number above 0, or leave it out"),
        ("{a: .nan}", "data.shards: the weight of a is nan: give a number above 0, or leave it out"),
        ("{a: x}", "data.shards: the weight of a is 'x': give a number above 0, or leave it out"),
    ],
)
def test_what_a_recipe_cannot_say(tmp_path, shards, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(f"output_dir: out\nsteps: 1\ndata: {{shards: {shards}}}\n")
    with pytest.raises(ConfigError) as raised:
        load_recipe(path)
    assert message in str(raised.value)


SIZE = "{hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 64}"
DS = {"train_batch_size": 8, "optimizer": {"type": "AdamW", "params": {"lr": 1e-3}}}


@pytest.fixture
def plan_of(tmp_path, small_shards, small_texts, small_tokenizer):
    from data_prep.sources.documents import Document
    from tests.shard_building import build_shards

    other = tmp_path / "other"
    documents = (Document(str(i), f"also {text}", "") for i, text in enumerate(small_texts[:60]))
    build_shards(documents, other, small_tokenizer, sources=[], holdout=0.2)
    (tmp_path / "ds.json").write_text(json.dumps(DS))

    def plan(shards: str):
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(
            f"output_dir: {tmp_path}/out\nsteps: 4\nmodel: {{size: {SIZE}}}\n"
            f"data: {{shards: {shards}, max_length: 32}}\n"
        )
        return make_plan(str(recipe), [], str(tmp_path / "ds.json"), 1)

    plan.directories = str(small_shards), str(other)
    return plan


def test_a_run_says_what_it_mixes_and_evaluates_in_the_same_shares(plan_of):
    first, second = plan_of.directories
    plan = plan_of(f"{{{first}: 1, {second}: 3}}")
    lines = describe_dry_run(plan)
    sizes = [len(part) for part in plan.train_shards.parts]
    shares = quotas(sum(sizes), [1, 3])
    (line,) = (line for line in lines if f"of {second}" in line)
    assert line.strip() == (
        f"75.0% of the samples are of {second}: {shares[1]:,} an epoch, so that each of its {sizes[1]:,} is read"
        f" {shares[1] / sizes[1]:.2f} times"
    )
    from bnb_ds.pretrain.plan import configuration

    heldout = plan.samples(plan.heldout_shards, configuration(plan.recipe, plan.train_shards))
    assert heldout.to_evaluate(8).tolist() == [0, 1, *range(heldout.sizes[0], heldout.sizes[0] + 6)]
    assert heldout.to_evaluate(10**6).size <= len(heldout)


def test_other_weights_are_another_run_and_one_directory_is_no_mixture(plan_of):
    first, second = plan_of.directories

    def fingerprint(shards: str) -> str:
        plan = plan_of(shards)
        return RunDir(plan.recipe, plan.ds_config, plan.train_shards.fingerprint).data_fingerprint

    equal = fingerprint(f"{{{first}: 1, {second}: 1}}")
    assert equal == fingerprint(f"{{{first}: 2, {second}: 2.0}}")
    assert equal.startswith("0.5 of ")
    assert equal != fingerprint(f"{{{first}: 1, {second}: 2}}")
    assert fingerprint(f"{{{first}: 7}}") == fingerprint(first)
