"""``bnb-ds bench train``: both ways train the same model on the same samples, and the command shows the figures."""

from __future__ import annotations

import json

import pytest
import torch

from bnb_ds.bench.train import WAYS, Contest, Setting, batches, measure, table
from bnb_ds.cli import main
from bnb_ds.modeling import BnbForConditionalGeneration
from bnb_ds.shards.reader import TokenShards


def setting(shards, **changes) -> Setting:
    fields = {
        "shards": shards,
        "size": "tiny",
        "batch_size": 3,
        "max_length": 40,
        "target_tokens": None,
        "decoder_ratio": 1.0,
        "kl_weight": 0.1,
        "dtype": torch.float32,
        "device": torch.device("cpu"),
        "repeats": 2,
    }
    return Setting(**{**fields, **changes})


def test_samples_are_documents_cut_and_none_comes_twice(small_shards):
    shards = TokenShards(small_shards, "train")
    documents = {tuple(shards.document(i)[:38].tolist()) for i in range(len(shards))}
    seen = []
    for batch in batches(setting(small_shards, target_tokens=5)):
        lengths = batch.packed["cu_seqlens"].diff().tolist()
        rows = batch.packed["input_ids"].split(lengths)
        targets = batch.packed["labels"].split(batch.packed["label_lengths"].tolist())
        for row, target, padded in zip(rows, targets, batch.padded["input_ids"], strict=True):
            assert tuple(row[1:-1].tolist()) in documents
            assert torch.equal(target[1:-1], row[1:-1][:5])
            assert padded[: len(row)].tolist() == row.tolist()
            assert len(padded) == 40
            seen.append(tuple(row.tolist()))
        assert batch.num_tokens == sum(lengths)
    assert len(set(seen)) == len(seen) == 6


def test_both_ways_have_the_same_loss_where_there_is_no_padding(small_shards):
    """With sources of full length and one slot per token, both ways compute the same model."""
    long = setting(small_shards, max_length=20, target_tokens=4)
    contest = Contest(long, TokenShards(small_shards, "train").vocab_size)
    batch = batches(long)[0]
    assert batch.num_tokens == 60
    models = contest._models
    for model in models.values():
        model.eval()
    packed = models["ours"](**batch.packed)
    plain = contest._plain_loss(models["padded"], batch.padded)
    assert plain.item() == pytest.approx(packed.loss.item(), rel=1e-5)


def test_measures_are_of_both_ways(small_shards):
    result = measure(setting(small_shards))
    assert result["seconds"].keys() == result["peak_bytes"].keys() == set(WAYS)
    assert result["padded_tokens"] == 2 * 3 * 40
    assert 0 < result["tokens"] <= 240
    assert all(value > 0 for value in (*result["seconds"].values(), *result["peak_bytes"].values()))


@pytest.mark.slow
def test_methods_are_measured_beside_ours(small_shards, monkeypatch):
    shown = []
    forward = BnbForConditionalGeneration.forward

    def noted(self, *args, **kwargs):
        ratio, draws = kwargs.get("glance_ratio"), kwargs.get("glance_draws")
        shown.append((self.config.deep_supervision, ratio, None if draws is None else len(draws)))
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(BnbForConditionalGeneration, "forward", noted)
    result = measure(setting(small_shards, repeats=1, methods=("glancing", "deep_supervision")))
    assert set(shown) == {(False, None, None), (False, 0.5, result["tokens"]), (True, None, None)}
    assert result["seconds"].keys() == result["peak_bytes"].keys() == {*WAYS, "glancing", "deep_supervision"}
    lines = table(result).splitlines()
    assert lines[5].startswith("| with ")
    assert [line.split(" | ")[0] for line in lines[7:]] == ["| glancing", "| deep_supervision"]


@pytest.mark.slow
def test_the_command_prints_a_table_and_writes_json(small_shards, tmp_path, capsys):
    file = tmp_path / "train.json"
    threads = torch.get_num_threads()
    try:
        options = ["--size", "tiny", "--batch-size", "2", "--max-length", "20", "--repeats", "1", "--dtype", "bf16"]
        assert main(["bench", "train", "--shards", str(small_shards), *options, "--json", str(file)]) == 0
    finally:
        torch.set_num_threads(threads)
    lines = capsys.readouterr().out.splitlines()
    assert "dtype bf16" in lines[0]
    assert "real tokens" in lines[1]
    assert lines[2] == "|  | ours | padded | ours against padded |"
    assert json.loads(file.read_text())["tokens"] == 40


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-length", "2"], "--max-length 2: give at least 3 tokens"),
        (["--batch-size", "900"], "documents for 6 batches of 900; lower --repeats or --batch-size"),
        (["--decoder-ratio", "0"], "decoder_length_ratio is 0.0: give a number above 0"),
    ],
)
def test_what_cannot_work_is_refused(small_shards, options, message, capsys):
    threads = torch.get_num_threads()
    try:
        assert main(["bench", "train", "--shards", str(small_shards), "--size", "tiny", *options]) == 2
    finally:
        torch.set_num_threads(threads)
    assert message in capsys.readouterr().err
