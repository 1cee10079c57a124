"""Whether torch can use the GPU of a machine: planted nvidia-smi and torch, and the script that installs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types

import pytest

from bnb_ds.common import torch_build
from tests.launching import REPOSITORY

V100, H100 = ("Tesla V100-SXM2-16GB", (7, 0)), ("NVIDIA H100 80GB HBM3", (9, 0))
CUDA_13 = {"version": "2.13.0+cu130", "cuda": "13.0", "built": "sm_75 sm_80 sm_86 sm_90 sm_100 sm_120 compute_120"}
CUDA_126 = {"version": "2.10.0+cu126", "cuda": "12.6", "built": "sm_50 sm_60 sm_70 sm_75 sm_80 sm_86 sm_90"}
CU126 = (
    "take the wheel cu126: python -m pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/"
)


def plant(monkeypatch, card, wheel, *, driver="560.35.03", usable=True, kernel=6.0):
    """A machine with this card, and this build of torch."""
    name, capability = card

    class Ones:
        def __add__(self, other):
            return self

        def sum(self):
            return self

        def item(self):
            if isinstance(kernel, str):
                raise RuntimeError(kernel)
            return kernel

    torch = types.SimpleNamespace(
        __version__=wheel["version"],
        version=types.SimpleNamespace(cuda=wheel["cuda"]),
        ones=lambda *_, device: Ones(),
        cuda=types.SimpleNamespace(
            is_available=lambda: usable,
            get_device_capability=lambda index: capability,
            get_arch_list=lambda: wheel["built"].split(),
        ),
    )
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setattr(torch_build, "_card", lambda: (name, driver))


def test_a_v100_with_a_wheel_of_pypi_is_told_the_wheel(monkeypatch, capsys):
    plant(monkeypatch, V100, CUDA_13)
    assert torch_build.main() == 2
    assert capsys.readouterr().err == (
        "bnb_ds: error: Tesla V100-SXM2-16GB (driver 560.35.03): torch 2.13.0+cu130 has no code for sm_70; "
        f"{CU126}cu126 (with BNB_TORCH_INDEX=https://download.pytorch.org/whl/cu126 the scripts under runs/ do it);"
        " or hide the GPU with CUDA_VISIBLE_DEVICES=\n"
    )


@pytest.mark.parametrize(("card", "wheel"), [(V100, CUDA_126), (H100, CUDA_13), (H100, CUDA_126)])
def test_a_wheel_that_serves_is_fine(monkeypatch, card, wheel):
    plant(monkeypatch, card, wheel)
    assert torch_build.fault() is None
    assert torch_build.main() == 0


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"usable": False, "driver": "535.54"}, "torch 2.13.0+cu130 finds no usable driver for CUDA 13.0; take the"),
        ({"usable": False, "driver": "470.82"}, "no usable driver for CUDA 13.0; update the driver to 525 or later;"),
        ({"kernel": "CUDA error: no kernel image\nmore"}, "a kernel on sm_90 (CUDA error: no kernel image); take the"),
        ({"kernel": 5.0}, "computes wrongly on sm_90; take the wheel cu126"),
    ],
)
def test_an_old_driver_and_a_failing_kernel_are_told(monkeypatch, changes, reason):
    plant(monkeypatch, H100, CUDA_13, **changes)
    assert reason in torch_build.fault()


def test_a_build_for_the_cpu_and_a_new_gpu(monkeypatch):
    plant(monkeypatch, H100, {**CUDA_13, "version": "2.13.0+cpu", "cuda": None})
    assert "torch 2.13.0+cpu is built without CUDA; take the wheel cu126" in torch_build.fault()
    plant(monkeypatch, ("NVIDIA B200", (10, 0)), CUDA_126)
    assert "has no code for sm_100; take the wheel cu128" in torch_build.fault()


@pytest.mark.parametrize(
    ("capability", "built", "serves"),
    [
        ((8, 6), ["sm_80"], True),
        ((8, 0), ["sm_86"], False),
        ((9, 0), ["sm_80", "compute_80"], True),
        ((9, 0), ["sm_90a"], True),
        ((12, 0), ["sm_120"], True),
        ((7, 0), ["compute_75"], False),
    ],
)
def test_which_code_runs_on_which_gpu(capability, built, serves):
    assert torch_build._has_code_for(capability, built) == serves


def test_a_machine_without_a_gpu_has_no_fault(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert torch_build.fault() is None
    tool = tmp_path / "nvidia-smi"
    for text in ("exit 9", "true", "echo 'Tesla V100-SXM2-16GB, 560.35.03'"):
        tool.write_text(f"#!/bin/sh\n{text}\n")
        tool.chmod(0o755)
        expected = ("Tesla V100-SXM2-16GB", "560.35.03") if "echo" in text else None
        assert torch_build._card() == expected
    for hidden in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert torch_build._card() is None


@pytest.mark.parametrize("driver", ["[N/A]", "", "R470"])
def test_a_driver_without_a_number_is_passed_over(monkeypatch, driver):
    plant(monkeypatch, V100, CUDA_13, driver=driver)
    assert f"(driver {driver or 'unknown'}): torch 2.13.0+cu130 has no code for sm_70; take" in torch_build.fault()


def test_a_tool_that_prints_no_text(monkeypatch, tmp_path):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nprintf '\\377 card, 550.1\\n'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert torch_build._card() == ("\ufffd card", "550.1")


@pytest.mark.parametrize(
    "raised", ["OSError('libcudnn.so.9: cannot open shared object file')", "ImportError('no c10')"]
)
def test_a_torch_that_cannot_be_imported_is_told(monkeypatch, tmp_path, raised):
    (tmp_path / "torch.py").write_text(f"raise {raised}")
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(torch_build, "_card", lambda: ("Tesla V100", "560.35.03"))
    fault = torch_build.fault()
    name, _, text = raised.partition("('")
    assert f"torch cannot be imported ({name}: {text[:-2]}); take the wheel cu126" in fault


FAKE_TORCH = """
import json, os
state = json.load(open(os.environ["FAKE_WHEEL"]))
__version__ = state["version"]
class version: cuda = state["cuda"]
class cuda:
    is_available = staticmethod(lambda: True)
    get_device_capability = staticmethod(lambda index: (7, 0))
    get_arch_list = staticmethod(lambda: state["built"].split())
class ones:
    def __init__(self, *a, device): pass
    def __add__(self, other): return self
    def sum(self): return self
    def item(self): return 6
"""
FAKE_PIP = f"""
import json, os, sys
print("pip", *sys.argv[1:])
json.dump({CUDA_126!r}, open(os.environ["FAKE_WHEEL"], "w"))
"""


@pytest.fixture
def machine(tmp_path):
    """A V100 with an environment that is installed already, with a torch of PyPI; runs the script's functions there."""
    files = {
        "modules/torch.py": FAKE_TORCH,
        "modules/pip.py": FAKE_PIP,
        "wheel.json": json.dumps(CUDA_13),
        "venv/bin/activate": "",
        "bin/nvidia-smi": "#!/bin/sh\necho 'Tesla V100-SXM2-16GB, 560.35.03'\n",
        "bin/python": f'#!/bin/sh\nexec {sys.executable} "$@"\n',
        "venv/.installed-base": "".join(
            (REPOSITORY / name).read_text() for name in ("setup.py", "runs/constraints.txt")
        ),
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for program in ("nvidia-smi", "python"):
        (tmp_path / "bin" / program).chmod(0o755)
    (tmp_path / "venv" / "bin" / "python").symlink_to(tmp_path / "bin" / "python")

    def run(**variables: str) -> subprocess.CompletedProcess[str]:
        environment = {
            **os.environ,
            "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": f"{tmp_path / 'modules'}{os.pathsep}{REPOSITORY}",
            "BNB_VENV": str(tmp_path / "venv"),
            "FAKE_WHEEL": str(tmp_path / "wheel.json"),
            **variables,
        }
        script = f"set -eu; source {REPOSITORY / 'runs' / 'environment.sh'}; use_environment; echo ready"
        return subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=False)

    return run


def test_the_script_says_which_wheel_to_take(machine):
    result = machine()
    assert result.returncode == 2
    assert "Tesla V100-SXM2-16GB (driver 560.35.03): torch 2.13.0+cu130 has no code for sm_70" in result.stderr
    assert "ready" not in result.stdout
    for value in ("", "-1"):
        hidden = machine(CUDA_VISIBLE_DEVICES=value)
        assert (hidden.returncode, hidden.stdout) == (0, "ready\n")


def test_the_script_takes_the_wheel_where_it_may(machine):
    index = "https://download.pytorch.org/whl/cu126"
    result = machine(BNB_TORCH_INDEX=index)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [
        f"installing torch from {index}, because the installed one cannot use this GPU",
        "pip install --quiet --disable-pip-version-check --constraint"
        f" {REPOSITORY / 'runs' / 'constraints.txt'} --force-reinstall torch --index-url {index}",
        "ready",
    ]
    assert machine(BNB_TORCH_INDEX=index).stdout == "ready\n"
