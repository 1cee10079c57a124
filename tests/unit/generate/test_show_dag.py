"""The picture of a graph of slots."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from bnb_ds.cli import main
from bnb_ds.dag.strategies import DagOptions
from bnb_ds.generate.graph_svg import draw
from bnb_ds.generate.graph_view import GraphView, Vertex, view_graph
from tests.exports import save_model

TEXT = "the value of the list"
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def model(small_tokenizer, tmp_path_factory):
    """Slots of the same token share no position, so that they differ."""
    fields = {"target": "dag", "decoder_length_ratio": 2.0, "decoder_positions": "absolute"}
    return save_model(tmp_path_factory.mktemp("dag") / "model", small_tokenizer, **fields)


@pytest.mark.parametrize("strategy", ["greedy", "lookahead", "viterbi", "joint_viterbi"])
def test_the_output_is_that_of_generate(model, tmp_path, strategy):
    (tmp_path / "in.txt").write_text(f"{TEXT}\n")
    files = ["--input", str(tmp_path / "in.txt"), "--output", str(tmp_path / "out.txt")]
    assert main(["generate", str(model), *files, "--strategy", strategy]) == 0
    view = view_graph(model, TEXT, DagOptions(strategy))
    assert view.text == (tmp_path / "out.txt").read_text().removesuffix("\n")
    assert view.path[0] == 0
    assert view.path[-1] == view.num_slots - 1


def test_probabilities_add_up(model):
    view = view_graph(model, TEXT, DagOptions("lookahead"), least=1e-12)
    assert len(view.vertices) == view.num_slots
    passing = {vertex.slot: vertex.passing for vertex in view.vertices}
    assert passing[0] == pytest.approx(1)
    assert passing[view.num_slots - 1] == pytest.approx(1)
    for slot in range(view.num_slots - 1):
        assert sum(p for (before, _), p in view.links.items() if before == slot) == pytest.approx(
            passing[slot], rel=1e-5
        )
    fewer = view_graph(model, TEXT, DagOptions("lookahead"), least=0.3)
    assert {v.slot for v in fewer.vertices} == {s for s, p in passing.items() if p >= 0.3} | set(view.path)


def test_the_command_writes_a_picture(model, tmp_path, capsys):
    picture = tmp_path / "graph.svg"
    assert main(["show-dag", str(model), "--text", TEXT, "--output", str(picture)]) == 0
    view = view_graph(model, TEXT, DagOptions("lookahead"))
    root = ElementTree.parse(picture).getroot()
    assert len(root.findall(f"{SVG}g")) == len(view.vertices)
    assert len(root.findall(f"{SVG}path")) == len(view.links)
    said = f"{picture}: {len(view.vertices)} of {view.num_slots} slots, {len(view.links)} links; output: {view.text}\n"
    assert capsys.readouterr().out == said
    assert main(["show-dag", str(model), "--text", TEXT, "--output", str(picture)]) == 2
    assert f"{picture}: already exists; add --overwrite to replace it, or choose another" in capsys.readouterr().err
    assert main(["show-dag", str(model), "--text", TEXT, "--output", str(picture), "--overwrite"]) == 0


def test_slots_do_not_cover_each_other_and_letters_are_escaped():
    vertices = [Vertex(slot, 0.5, [("<&>", 0.5), ('"', 0.1)]) for slot in range(7)]
    links = {(0, 1): 0.2, (0, 2): 0.3, (0, 3): 0.5, (1, 6): 0.2, (2, 4): 0.3, (3, 5): 0.5, (4, 6): 0.3, (5, 6): 0.5}
    root = ElementTree.fromstring(draw(GraphView(9, vertices, links, [0, 3, 5, 6], "a < b & c")))
    corners = {(box.get("x"), box.get("y")) for box in root.iterfind(f"{SVG}g/{SVG}rect")}
    assert len(corners) == len(vertices)
    assert len({box.get("y") for box in root.iterfind(f"{SVG}g/{SVG}rect")}) == 3
    assert root.find(f"{SVG}title").text == "a < b & c"
    assert "2 that few paths pass are not shown" in "".join(root.itertext())


def test_a_slot_without_a_link_to_it_stands_beside_its_neighbours():
    """Many slots may lead to it, each with less than the least probability that is shown."""
    vertices = [Vertex(slot, 1.0, [(f"w{slot}", 1.0)]) for slot in (0, 3, 5, 7, 9)]
    drawn = draw(GraphView(10, vertices, {(0, 3): 0.9, (3, 5): 0.9, (5, 9): 0.9, (7, 9): 0.1}, [0, 3, 5, 9], "a"))
    left = {
        vertex[0].text.split(":")[0]: int(vertex[1].get("x"))
        for vertex in ElementTree.fromstring(drawn).iter("{http://www.w3.org/2000/svg}g")
    }
    assert left["slot 5"] < left["slot 7"] < left["slot 9"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--least", "0"], "--least 0.0: give a probability above 0, up to 1"),
        (["--text", "  "], "--text: has no tokens; give a text with words"),
        (["--output", "."], "--output .: is a directory: give the name of a file"),
    ],
)
def test_refused(model, tmp_path, capsys, arguments, message):
    command = ["show-dag", str(model), "--text", TEXT, "--output", str(tmp_path / "o.svg"), *arguments]
    assert main(command) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "o.svg").exists()


def test_another_target_is_refused(small_tokenizer, tmp_path, capsys):
    other = save_model(tmp_path / "ctc", small_tokenizer)
    assert main(["show-dag", str(other), "--text", TEXT, "--output", str(tmp_path / "o.svg")]) == 2
    assert "its target is ctc; give a model that was trained with target dag" in capsys.readouterr().err
