"""`bnb-ds predict`: rows without labels or references, in every format, for every kind of task."""

from __future__ import annotations

import csv
import gzip
import json
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch

from bnb_ds.cli import main
from bnb_ds.evaluate.model import evaluate_model
from bnb_ds.evaluate.predict import predict
from bnb_ds.modeling import BnbForConditionalGeneration
from bnb_ds.systems.bnb import BnbClassifier, BnbGenerator, BnbModelSection
from bnb_ds.tasks.codec import Codec
from bnb_ds.tasks.registry import get_task
from bnb_ds.tasks.spacing import Spacing
from bnb_ds.tasks.text_lengths import Lengths

SIZE = {
    "hidden_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 64,
}


@pytest.fixture(scope="module")
def models(small_tokenizer, small_texts, tmp_path_factory):
    """Untrained models of three kinds of tasks, with weights large enough for rows to differ."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("sst2", "stsb", "summarization"):
        task = get_task(name)
        codec = Codec(small_tokenizer, small_tokenizer, Spacing.learn(small_tokenizer, small_texts))
        kind = BnbGenerator if task.is_generation else BnbClassifier
        system = kind(task, Lengths(48, 24), codec, BnbModelSection(kind="bnb", size=SIZE))
        torch.manual_seed(0)
        model = system.build()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(8)
        model.save_pretrained(folder / name)
        system.save_files(model.config, folder / name)
    return folder


@pytest.fixture(scope="module")
def sentences(small_texts) -> list[str]:
    return [" ".join(text.split()[: 3 + i % 9]).replace('"', "") for i, text in enumerate(small_texts[:21])]


def lines_of(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "tsv.gz", "parquet", "en"])
def test_labels_and_probabilities_are_those_of_an_evaluation(models, sentences, tmp_path, suffix, capsys):
    rows = [{"sentence": sentence} for sentence in sentences]
    path = tmp_path / f"rows.{suffix}"
    if suffix == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif suffix == "csv":
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, ["sentence"])
            writer.writeheader()
            writer.writerows(rows)
    else:
        text = {
            "jsonl": "".join(json.dumps(row) + "\n" for row in rows),
            "json": json.dumps(rows),
            "tsv.gz": "\n".join(["sentence", *sentences]) + "\n",
            "en": "\n".join(sentences),
        }[suffix]
        path.write_bytes(gzip.compress(text.encode()) if suffix.endswith("gz") else text.encode())
    output = tmp_path / "out.jsonl"
    assert main(["predict", str(models / "sst2"), "--input", str(path), "--output", str(output)]) == 0
    assert "21 rows read, 21 kept, 0 left out" in capsys.readouterr().out
    labelled = tmp_path / "labelled.jsonl"
    labelled.write_text("".join(json.dumps({**row, "label": 0}) + "\n" for row in rows))
    overrides = [f"data.validation={labelled}", f"data.cache_dir={tmp_path}"]
    evaluation = evaluate_model(models / "sst2", overrides=overrides, output=tmp_path / "evaluation")
    expected = (evaluation.directory / "generated_predictions.txt").read_text().splitlines()
    said = lines_of(output)
    assert [row["label"] for row in said] == expected
    assert len(set(expected)) == 2
    for row in said:
        shares = row["probabilities"]
        assert max(shares, key=shares.get) == row["label"]
        assert sum(shares.values()) == pytest.approx(1, abs=2e-4)
    assert evaluation.results["rows"] == ["21 rows read, 21 kept, 0 left out"]


def test_texts_and_scores(models, sentences, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"document": s, "id": str(i)}) + "\n" for i, s in enumerate(sentences)))
    predict(models / "summarization", path, tmp_path / "texts.jsonl")
    full = tmp_path / "full.jsonl"
    full.write_text("".join(json.dumps({"document": s, "summary": "the value's"}) + "\n" for s in sentences))
    overrides = [f"data.validation={full}", f"data.cache_dir={tmp_path}"]
    evaluation = evaluate_model(models / "summarization", overrides=overrides, output=tmp_path / "evaluation")
    expected = (evaluation.directory / "generated_predictions.txt").read_text().split("\n")[:-1]
    assert [row["text"] for row in lines_of(tmp_path / "texts.jsonl")] == expected
    assert evaluation.results["ceilings"] == {"rouge1": 100.0, "rouge2": 100.0, "rougeL": 100.0}
    assert evaluation.results["lowercase"] is False
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps({"a": s, "b": s[::-1]}) + "\n" for s in sentences))
    columns = ["data.columns={sentence1: a, sentence2: b}"]
    predict(models / "stsb", pairs, tmp_path / "scores.jsonl", overrides=columns)
    assert len({row["score"] for row in lines_of(tmp_path / "scores.jsonl")}) > 5


def test_windows_and_batches_make_no_difference(models, sentences, tmp_path, monkeypatch):
    path = tmp_path / "rows.txt.en"
    path.write_text("\n".join(sentences))
    predict(models / "summarization", path, tmp_path / "a.jsonl")
    monkeypatch.setattr("bnb_ds.evaluate.predict._WINDOW", 4)
    predict(models / "summarization", path, tmp_path / "b.jsonl", batch_size=3)
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()


def test_bad_rows_are_left_out_on_request_and_counted(models, tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"sentence": "the value"}\n{"sentence": null}\n{"text": "x"}\n')
    command = ["predict", str(models / "sst2"), "--input", str(path), "--output", str(tmp_path / "out.jsonl")]
    assert main(command) == 2
    assert (
        "line 2: the source (sentence) is empty; remove the row, or set data.skip_bad_rows" in capsys.readouterr().err
    )
    assert not (tmp_path / "out.jsonl").exists(), "an output is complete, or it is not there"
    assert main([*command, "--set", "data.skip_bad_rows=true"]) == 0
    said = capsys.readouterr().out
    assert "3 rows read, 1 kept, 2 left out" in said
    assert "1 left out: no column 'sentence'" in said
    assert len(lines_of(tmp_path / "out.jsonl")) == 1


def test_what_is_refused(models, tmp_path, capsys):
    there = tmp_path / "there.jsonl"
    there.write_text("")
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    for source, output, message in (
        (empty, there, "there.jsonl: already exists; remove it or choose another output"),
        (empty, tmp_path / "o", "empty.jsonl: gives no sources; check the file and data.columns"),
        (tmp_path / "absent.jsonl", tmp_path / "o", "absent.jsonl: cannot be read (No such file or directory)"),
    ):
        assert main(["predict", str(models / "sst2"), "--input", str(source), "--output", str(output)]) == 2
        said = capsys.readouterr().err
        assert message in said
        assert said.count("\n") == 1


def test_outputs_that_are_not_numbers(models, small_tokenizer, tmp_path, capsys):
    """They have no class, and no score of them may win."""
    system = BnbClassifier(
        get_task("sst2"),
        Lengths(48, 24),
        Codec(small_tokenizer, small_tokenizer),
        BnbModelSection(kind="bnb", size=SIZE),
    )
    model = system.build()
    with torch.no_grad():
        model.classifier.bias.fill_(float("nan"))
    model.save_pretrained(tmp_path / "broken")
    system.save_files(model.config, tmp_path / "broken")
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"sentence": "the value", "label": 0}\n')
    command = ["predict", str(tmp_path / "broken"), "--input", str(rows), "--output", str(tmp_path / "o")]
    assert main(command) == 2
    assert "the model's outputs are not numbers; give a checkpoint from before" in capsys.readouterr().err
    overrides = [f"data.validation={rows}", f"data.cache_dir={tmp_path}"]
    evaluation = evaluate_model(tmp_path / "broken", overrides=overrides, output=tmp_path / "e")
    assert np.isnan(evaluation.scores["accuracy"])


def test_pipes_on_both_sides(models, sentences, tmp_path):
    """As `bnb-ds predict MODEL --input <(command) --output >(command)`."""
    text = "".join(f"{sentence}\n" for sentence in sentences)
    (tmp_path / "rows.en").write_text(text)
    predict(models / "sst2", tmp_path / "rows.en", tmp_path / "o")
    (reading, writing), found = os.pipe(), []
    os.write(writing, text.encode())
    os.close(writing)
    os.mkfifo(tmp_path / "out")
    reader = threading.Thread(target=lambda: found.append((tmp_path / "out").read_bytes()), daemon=True)
    reader.start()
    predict(models / "sst2", Path(f"/dev/fd/{reading}"), tmp_path / "out")
    os.close(reading)
    reader.join(10)
    assert found == [(tmp_path / "o").read_bytes()]


def test_a_pipe_that_is_not_text_is_one_line(models, tmp_path, capsys):
    reading, writing = os.pipe()
    os.write(writing, b"a\n\xff\n")
    os.close(writing)
    code = main(["predict", str(models / "sst2"), "--input", f"/dev/fd/{reading}", "--output", str(tmp_path / "o")])
    os.close(reading)
    assert code == 2
    assert f"/dev/fd/{reading}: cannot be read ('utf-8' codec" in capsys.readouterr().err


def test_texts_of_a_model_whose_outputs_are_not_numbers(models, tmp_path, capsys):
    """Its texts are empty by accident. Their scores would be 0.0, as if a sound model were bad."""
    model = BnbForConditionalGeneration.from_pretrained(models / "summarization")
    with torch.no_grad():
        model.lm_head.bias.fill_(float("nan"))
    shutil.copytree(models / "summarization", tmp_path / "broken")
    model.save_pretrained(tmp_path / "broken")
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"document": "the value of the list", "summary": "the value"}\n')
    overrides = [f"data.validation={rows}", f"data.cache_dir={tmp_path}"]
    evaluation = evaluate_model(tmp_path / "broken", overrides=overrides, output=tmp_path / "e")
    assert np.isnan([evaluation.scores[name] for name in ("loss", "rouge1", "rougeL", "length_ratio")]).all()
    command = ["predict", str(tmp_path / "broken"), "--input", str(rows), "--output", str(tmp_path / "o")]
    assert main(command) == 2
    assert "the model's outputs are not numbers; give a checkpoint from before" in capsys.readouterr().err
