"""`bnb-ds bench serve` runs a real service, and its clients notice wrong answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bnb_ds.bench.serve import Tally, alone, running_service, table
from bnb_ds.cli import main
from bnb_ds.errors import BnbError
from tests.exports import save_model


@pytest.fixture(scope="module")
def model(tmp_path_factory, small_tokenizer) -> Path:
    return save_model(tmp_path_factory.mktemp("bench_serve") / "model", small_tokenizer)


@pytest.mark.slow
def test_many_clients_beside_one(model, small_texts, tmp_path, capsys):
    pytest.importorskip("fastapi", reason="the extra [serve] is not installed")
    data, figures = tmp_path / "texts.txt", tmp_path / "figures.json"
    data.write_text("\n".join(text[:60] for text in small_texts[:20]), encoding="utf-8")
    flags = ["--data", data, "--num-sources", "8", "--clients", "5", "--seconds", "2", "--pause-ms", "10"]
    assert main(["bench", "serve", str(model), *map(str, flags), "--json", str(figures)]) == 0
    one, many = json.loads(figures.read_text())["results"].values()
    assert one["answers"] == 8
    assert many["answers"] > 5
    assert [row[what] for row in (one, many) for what in ("wrong", "lost")] == [0, 0, 0, 0]
    assert "p95 under load" in capsys.readouterr().out


@pytest.mark.slow
def test_bad_neighbours_lose_and_mix_up_nothing(model, small_texts, tmp_path, capsys):
    """The short form of the load test: what is promised under load, but no times."""
    pytest.importorskip("fastapi", reason="the extra [serve] is not installed")
    data, figures = tmp_path / "texts.txt", tmp_path / "figures.json"
    data.write_text("\n".join(text[:60] for text in small_texts[:20]), encoding="utf-8")
    flags = ["--data", data, "--num-sources", "20", "--clients", "16", "--seconds", "6", "--pause-ms", "20"]
    command = ["bench", "serve", str(model), *map(str, flags), "--bad-neighbours", "--json", str(figures)]
    assert main(command) == 0
    found = json.loads(figures.read_text())
    assert len(found["results"]) == 3
    for row in found["results"].values():
        assert row["answers"] > 16
        assert (row["wrong"], row["lost"]) == (0, 0)
    assert (found["end"]["wrong"], found["end"]["lost"]) == (0, 0)
    counts = found["neighbours"]
    assert min(counts[f"{kind} connections"] for kind in ("idle", "slow", "vanish", "beam")) > 0
    assert counts["beam answers 200"] > 0
    assert "beam answers that are wrong" not in counts
    said = capsys.readouterr().out
    assert "SIGTERM under load: " in said
    assert " 0 lost; 0 of the last" in said


@pytest.mark.slow
def test_wrong_and_missing_answers_are_counted(model, capsys):
    pytest.importorskip("fastapi", reason="the extra [serve] is not installed")
    with running_service(model, "--device", "cpu") as service:
        tally = alone(service.port, ["a text"], {"a text": "not what the model writes"})
    assert len(tally.wrong) == 1
    assert tally.wrong[0].startswith("200 for 'a text'")
    assert len(alone(service.port, ["a text"], {}).lost) == 1


@pytest.mark.slow
def test_a_service_that_does_not_start_speaks_for_itself(tmp_path):
    with (
        pytest.raises(BnbError, match=r"the service did not start: .*no_model"),
        running_service(tmp_path / "no_model"),
    ):
        pass


def test_percentiles():
    figures = Tally([0.001 * n for n in range(1, 101)]).figures(10.0)
    assert (figures["p50_ms"], figures["p95_ms"], figures["requests_per_second"]) == (50.5, 95.0, 10.0)
    text = table({"one client": figures, "9 clients": figures}, 5)
    assert text.endswith("less the batching wait of 5 ms: 1.78 times p50 alone")
