"""How the project is installed: environments, constraints, wheelhouses and containers, as far as files can show it."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.launching import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "runs"))
import constraints as writer

CONSTRAINTS = REPOSITORY / "runs" / "constraints.txt"
DOCKERFILE = REPOSITORY / "docker" / "Dockerfile"
IGNORED = (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").split("\n")
_KNOWN = {
    "ARG",
    "FROM",
    "RUN",
    "ENV",
    "WORKDIR",
    "COPY",
    "USER",
    "EXPOSE",
    "STOPSIGNAL",
    "HEALTHCHECK",
    "ENTRYPOINT",
    "CMD",
}


def pinned() -> dict[str, Requirement]:
    lines = [line for line in CONSTRAINTS.read_text(encoding="utf-8").splitlines() if line and line[0] != "#"]
    return {writer.name_of(line): Requirement(line) for line in lines}


def test_the_constraints_are_versions_that_setup_allows():
    named: dict[str, list[Requirement]] = {}
    for text in writer.requirements():
        named.setdefault(writer.name_of(text), []).append(Requirement(text))
    assert "torch" in pinned()
    for name, constraint in pinned().items():
        assert name in named, f"{name}: setup.py no longer names it; run python runs/constraints.py"
        for version in re.findall(r"==([\w.]+)", str(constraint.specifier)):
            assert all(requirement.specifier.contains(version) for requirement in named[name]), name


def test_the_tests_bring_the_compilers_of_kernels():
    names = {writer.name_of(text) for text in writer.requirements()}
    assert {"triton", "nvidia-cuda-nvrtc-cu12"} <= names


def test_torch_is_capped_for_the_suite_and_not_for_users():
    assert not pinned()["torch"].specifier.contains("2.14.0")
    (torch,) = (Requirement(text) for text in writer.requirements() if writer.name_of(text) == "torch")
    assert torch.specifier.contains("2.6.0")
    assert torch.specifier.contains("2.15.0")


def test_the_writer_pins_what_is_installed():
    lines = writer.constraints().splitlines()
    assert "torch<2.14" in lines
    assert any(line.startswith("transformers==") and "python_version >=" in line for line in lines)


@pytest.fixture
def environment(tmp_path):
    """An environment whose Python notes what it is called with, in the place of pip."""
    venv = tmp_path / "venv with a space"
    (venv / "bin").mkdir(parents=True)
    python = venv / "bin" / "python"
    python.write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" >> {shlex.quote(str(tmp_path / "calls"))}\n')
    python.chmod(0o755)
    (venv / "bin" / "activate").write_text(f"PATH={shlex.quote(str(venv / 'bin'))}:$PATH; VIRTUAL_ENV=x\n")

    def use(**variables: str) -> list[str]:
        command = (
            f"set -euo pipefail; cd {shlex.quote(str(REPOSITORY))}; source runs/environment.sh; use_environment test"
        )
        values = {**os.environ, "BNB_VENV": str(venv), **variables}
        subprocess.run(["bash", "-c", command], env=values, check=True, capture_output=True)
        calls = tmp_path / "calls"
        found = calls.read_text().splitlines() if calls.exists() else []
        calls.unlink(missing_ok=True)
        return found

    return use


def test_an_environment_is_installed_with_the_constraints_once(environment):
    (call,) = environment()
    assert f"--constraint {CONSTRAINTS} --editable {REPOSITORY}[test]" in call
    assert "--no-index" not in call
    assert environment() == []


def test_a_wheelhouse_takes_the_place_of_the_network(environment):
    (call,) = environment(BNB_WHEELHOUSE="/media/my wheels")
    assert "--no-index --find-links /media/my wheels --editable" in call


def test_the_wheelhouse_script_says_how_it_is_used(tmp_path):
    script = ["bash", str(REPOSITORY / "runs" / "wheelhouse.sh")]
    shown = subprocess.run(script, capture_output=True, text=True, check=False)
    assert shown.returncode == 2
    assert "bash runs/wheelhouse.sh DIRECTORY [EXTRA,EXTRA]" in shown.stderr
    old = tmp_path / "python"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    command = [*script, str(tmp_path / "wheels")]
    shown = subprocess.run(command, env={**os.environ, "PYTHON": str(old)}, capture_output=True, text=True, check=False)
    assert shown.returncode == 2
    assert shown.stderr == f"wheelhouse: error: {old} is not Python 3.10, 3.11 or 3.12; name one with PYTHON=\n"
    assert not (tmp_path / "wheels").exists()


def instructions() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile, with continuation lines joined."""
    lines = [line for line in DOCKERFILE.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    return [tuple(line.split(None, 1)) for line in joined.splitlines() if line.strip()]


def is_sent(path: str) -> bool:
    """Whether the builder gets a path: the last pattern of .dockerignore that matches decides."""
    sent = True
    for pattern in IGNORED:
        if pattern and not pattern.startswith("#") and fnmatch(path, pattern.removeprefix("!")):
            sent = pattern.startswith("!")
    return sent


def test_every_instruction_is_known_and_every_stage_there():
    assert {name for name, _ in instructions()} <= _KNOWN
    stages: list[str] = []
    for name, rest in instructions():
        if name == "FROM":
            base, _, stage = rest.partition(" AS ")
            assert base == "${BASE}" or base in stages
            stages.append(stage)
    assert stages == ["base", "serve", "train"]
    (base,) = (rest for name, rest in instructions() if name == "ARG" and rest.startswith("BASE="))
    assert not base.endswith(":latest")
    assert ":" in base


def test_what_is_copied_is_there_and_is_sent_to_the_builder():
    for name, rest in instructions():
        if name == "COPY":
            *sources, _ = rest.split()
            for source in sources:
                assert (REPOSITORY / source).exists(), source
                assert is_sent(source), source
    assert not is_sent(".git")
    assert not is_sent("work")
    assert not is_sent("tests")


@pytest.mark.parametrize("command", [rest for name, rest in instructions() if name == "RUN"])
def test_every_command_of_the_image_is_one_of_a_shell(command):
    shown = subprocess.run(["sh", "-n", "-c", command], capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr


def test_variables_are_given_a_value_before_they_are_used():
    known = {"PATH", "packages"}
    for name, rest in instructions():
        used = set(re.findall(r"\$\{?(\w+)", rest))
        assert used <= known, rest
        if name == "ARG":
            known.add(rest.partition("=")[0])
        elif name == "FROM":
            known &= {"PATH", "packages", "BASE"}


def test_extras_of_the_images_exist():
    known = set(re.findall(r'^    "(\w+)": \[', (REPOSITORY / "setup.py").read_text(), re.MULTILINE))
    for extras in re.findall(r'"\.\[([\w,]+)\]"', DOCKERFILE.read_text(encoding="utf-8")):
        assert set(extras.split(",")) <= known
    assert json.loads(next(rest for name, rest in instructions() if name == "CMD")) == ["bash"]


def test_the_commands_of_the_page_are_those_of_the_image():
    page = Path(REPOSITORY / "docs" / "containers.md").read_text(encoding="utf-8")
    assert set(re.findall(r"--target (\w+)", page)) == {"train", "serve"}
    assert set(re.findall(r"--build-arg (\w+)=", page)) <= {"BASE", "PIP_OPTIONS"}
