"""`bnb-ds prep verify` and `TokenShards` find every flipped byte and every removed file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from bnb_ds.data.tokenization import save_tokenizer, tokenizer_from_vocabulary
from bnb_ds.errors import DataError
from bnb_ds.shards.manifest import SPLITS, parse_manifest
from bnb_ds.shards.reader import TokenShards
from data_prep.tools.verify import find_damage
from tests.prep_helpers import prep


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A directory with everything that one can hold, in few bytes; not to be changed."""
    directory = tmp_path_factory.mktemp("verify")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "one", "two"]
    save_tokenizer(tokenizer_from_vocabulary(words, lowercase=False, name="tiny"), directory / "tokenizer")
    rows = [{"id": i, "text": "one two one"} for i in range(9)]
    lines = [*map(json.dumps, rows), "no row"]
    (directory / "a.jsonl").write_text("\n".join(lines))
    command = ["text", "--input", directory / "a.jsonl", "--tokenizer", directory / "tokenizer", "--skip-bad"]
    prep(*command, "--output", directory / "s", "--holdout", "0.3")
    assert find_damage(directory / "s") == []
    assert all(len(TokenShards(directory / "s", split)) for split in SPLITS)
    return directory / "s"


@pytest.fixture
def shards(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "s")
    return tmp_path / "s"


def files_of(directory: Path) -> list[str]:
    return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())


def is_refused(shards: Path) -> bool:
    """Whether one of the splits does not open when everything is compared."""
    try:
        for split in SPLITS:
            TokenShards(shards, split, verify_hashes=True)
    except DataError as error:
        return "\n" not in str(error)
    return False


def flips(path: Path) -> Iterator[int]:
    """Flip one bit of every byte of a file in turn, another one from byte to byte."""
    data = path.read_bytes()
    for place in range(len(data)):
        flipped = bytearray(data)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        yield place
    path.write_bytes(data)


NAMES = [
    "bad_records.jsonl",
    "heldout-00000.offsets.npy",
    "heldout-00000.tokens.npy",
    "manifest.json",
    "manifest.json.sha256",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
    "train-00000.offsets.npy",
    "train-00000.tokens.npy",
]


def test_the_list_of_files_is_whole(whole: Path) -> None:
    assert files_of(whole) == NAMES


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore")  # NumPy's, about damaged headers
def test_every_flipped_byte_is_found(shards: Path, name: str) -> None:
    for place in flips(shards / name):
        damage = find_damage(shards)
        assert any(line.startswith(str(shards)) for line in damage), (name, place)
        assert not any("\n" in line for line in damage)
        assert is_refused(shards), (name, place)
    assert find_damage(shards) == []


@pytest.mark.parametrize("name", NAMES)
def test_every_removed_or_emptied_file_is_found(shards: Path, name: str) -> None:
    content = (shards / name).read_bytes()
    (shards / name).write_bytes(b"")
    assert find_damage(shards) != []
    assert is_refused(shards)
    (shards / name).unlink()
    assert is_refused(shards)
    if name == "manifest.json":
        with pytest.raises(DataError, match=r"/s: no manifest.json, so not a finished shard directory"):
            find_damage(shards)
    else:
        assert any(f"{shards / name}: cannot read: No such file or directory" in line for line in find_damage(shards))
    (shards / name).write_bytes(content)
    assert find_damage(shards) == []


@pytest.mark.parametrize("name", ["tokenizer", "tokenizer/added_tokens.json"])
def test_what_else_is_wrong_with_the_tokenizer(shards: Path, name: str) -> None:
    """A directory that is gone, and a file that transformers would read."""
    if name == "tokenizer":
        shutil.rmtree(shards / name)
        assert sum("cannot read" in line for line in find_damage(shards)) == 2
    else:
        (shards / name).write_text('{"one two": 7}')
        assert f"{shards / name}: not in the manifest; remove it" in find_damage(shards)
    assert is_refused(shards)


def test_all_damage_is_listed_in_one_run(shards: Path, capsys: pytest.CaptureFixture) -> None:
    for name in NAMES:
        if name == "manifest.json.sha256":
            (shards / name).unlink()
        elif name != "manifest.json":
            (shards / name).write_bytes((shards / name).read_bytes()[:-1] + b"\x07")
    assert prep("verify", shards) == 1
    lines = capsys.readouterr().err.splitlines()
    for name in NAMES:
        assert name == "manifest.json" or any(f"{shards / name}: " in line for line in lines), name


def test_seal_is_what_sha256sum_prints(whole: Path) -> None:
    import hashlib

    digest = hashlib.sha256((whole / "manifest.json").read_bytes()).hexdigest()
    assert (whole / "manifest.json.sha256").read_text() == f"{digest}  manifest.json\n"


def test_a_broken_seal_says_what_to_do(shards: Path) -> None:
    (shards / "manifest.json.sha256").write_text("0")
    message = r"/s/manifest.json.sha256: is not the SHA-256 of manifest.json: one of the two is damaged; restore both"
    with pytest.raises(DataError, match=message):
        TokenShards(shards)


def as_version_1(shards: Path) -> None:
    """What earlier releases wrote."""
    manifest = json.loads((shards / "manifest.json").read_text())
    manifest["format_version"] = 1
    for field in ("engines", "files"):
        del manifest[field]
    for setting in ("part_bytes", "ignore_ids"):
        del manifest["settings"][setting]
    (shards / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    (shards / "manifest.json.sha256").unlink()


def test_version_1_is_read_and_says_what_cannot_be_checked(shards: Path, capsys: pytest.CaptureFixture) -> None:
    as_version_1(shards)
    assert [len(TokenShards(shards, split, verify_hashes=True)) > 0 for split in SPLITS] == [True, True]
    assert parse_manifest((shards / "manifest.json").read_bytes(), shards).files == []
    assert prep("verify", shards) == 0
    assert capsys.readouterr().out.splitlines()[1] == (
        "prep verify: format version 1 has no hash of the manifest itself, of bad_records.jsonl and of tokenizer "
        "settings that do not decide the ids: these are not checked"
    )
    path = shards / "tokenizer" / "tokenizer.json"
    path.write_text(path.read_text().replace('"lowercase": false', '"lowercase": true'))
    assert [line.split(": ")[1][:17] for line in find_damage(shards)] == ["not the tokenizer"]
