"""The search for NVIDIA apex. The packages are made here, because building NVIDIA apex needs a GPU."""

from __future__ import annotations

import importlib
import re
import sys
import types

import pytest
import torch
from torch import nn

from bnb_ds.errors import ConfigError
from bnb_ds.train import engine, fused
from bnb_ds.train.fused import choose_optimizer, find_apex, fuse_layer_norms

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def install(tmp_path, monkeypatch):
    """A function that puts a package named apex, with metadata like pip's, on the path."""

    def install_apex(files: dict[str, str], summary: str) -> None:
        for name, text in files.items():
            path = tmp_path / "apex" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        metadata = tmp_path / "apex-0.9.dist-info" / "METADATA"
        metadata.parent.mkdir()
        metadata.write_text(f"Metadata-Version: 2.1\nName: apex\nVersion: 0.9\nSummary: {summary}\n")
        monkeypatch.syspath_prepend(str(tmp_path))

    yield install_apex
    for name in [name for name in sys.modules if name == "apex" or name.startswith("apex.")]:
        del sys.modules[name]


@pytest.mark.parametrize("init", ["", "from pyramid.session import UnencryptedCookieSessionFactoryConfig"])
def test_the_other_apex_is_refused_by_name(install, init):
    install({"__init__.py": init}, "Pyramid toolkit to add Velruse, Flash Messages, CSRF, ReCaptcha and Sessions")
    with pytest.raises(ConfigError, match=r"'apex' \(Pyramid toolkit .* is not NVIDIA apex; run `pip uninstall apex`"):
        find_apex(CPU)


def test_a_build_without_extensions_is_passed_over(install):
    layer = (
        "class FusedLayerNorm:\n    def __init__(self, shape):\n        raise RuntimeError('no fused_layer_norm_cuda')"
    )
    files = {"__init__.py": "", "normalization.py": layer, "optimizers.py": "FusedAdam = FusedLAMB = None"}
    install(files, "PyTorch Extensions written by NVIDIA")
    apex = find_apex(CPU)
    assert not apex.usable
    assert "without its CUDA extensions (no fused_layer_norm_cuda)" in apex.description


def test_a_build_without_its_parts_is_passed_over(install):
    install({"__init__.py": ""}, "PyTorch Extensions written by NVIDIA")
    assert "without its layers and optimizers" in find_apex(CPU).description


def test_without_apex_torch_is_used():
    assert find_apex(CPU).description == "NVIDIA apex is not installed"
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    assert fuse_layer_norms(model, CPU) == "torch LayerNorm"
    assert type(model[1]) is nn.LayerNorm


@pytest.mark.parametrize(("kind", "expected"), [("AdamW", torch.optim.AdamW), ("Adam", torch.optim.Adam)])
def test_optimizer_on_a_cpu_is_torchs(kind, expected):
    build, name = choose_optimizer(kind, {"lr": 0.1, "weight_decay": 0.5}, CPU)
    optimizer = build([nn.Parameter(torch.ones(2))])
    assert type(optimizer) is expected
    assert optimizer.defaults["lr"] == 0.1
    assert optimizer.defaults["weight_decay"] == 0.5
    assert name == f"torch {kind}, fused"


def test_lamb_needs_a_gpu():
    with pytest.raises(ConfigError, match="Lamb needs a CUDA device; use AdamW on a CPU"):
        choose_optimizer("Lamb", {"lr": 0.1}, CPU)


class Nothing(torch.optim.Optimizer):
    """An optimizer whose kernel runs and does nothing."""

    def __init__(self, params, **options):
        super().__init__(params, options)

    def step(self):
        pass


class Climbs(Nothing):
    """An optimizer that goes the wrong way."""

    def step(self):
        for parameter in self.param_groups[0]["params"]:
            parameter.add_(parameter.grad, alpha=0.1)


class Biased(nn.LayerNorm):
    """A layer whose kernel gives wrong numbers."""

    def forward(self, values):
        return super().forward(values) + 0.01


def refuse(*args, **kwargs):
    raise RuntimeError("CUDA error: no kernel image is available for execution on the device")


def right_lamb(groups, **options):
    return torch.optim.SGD(groups, lr=0.1)


@pytest.mark.parametrize(
    ("layer", "adam", "lamb", "fault"),
    [
        (nn.LayerNorm, torch.optim.AdamW, right_lamb, None),
        (Biased, torch.optim.AdamW, right_lamb, r"ArithmeticError: wrong numbers \(layer norm\)"),
        (nn.LayerNorm, Nothing, right_lamb, r"ArithmeticError: wrong numbers \(step of AdamW\)"),
        (nn.LayerNorm, torch.optim.AdamW, Nothing, r"ArithmeticError: wrong numbers \(size of a step of Lamb\)"),
        (nn.LayerNorm, torch.optim.AdamW, Climbs, r"ArithmeticError: wrong numbers \(step of Lamb\)"),
        (nn.LayerNorm, refuse, right_lamb, "RuntimeError: CUDA error: no kernel image is available"),
    ],
)
def test_apex_is_tried_beside_torch(install, monkeypatch, layer, adam, lamb, fault):
    """A planted package that is imported and built without an error; its kernels run on the CPU here."""
    install(dict.fromkeys(("__init__.py", "normalization.py", "optimizers.py"), ""), "Extensions written by NVIDIA")
    normalization, optimizers = (importlib.import_module(f"apex.{name}") for name in ("normalization", "optimizers"))
    built = []

    def fused_adam(groups, adam_w_mode=True, **options):
        built.append(groups)
        return Nothing(groups) if len(built) == 1 else adam(groups, **options)

    normalization.FusedLayerNorm, optimizers.FusedAdam, optimizers.FusedLAMB = layer, fused_adam, lamb
    tries_here(monkeypatch)
    apex = find_apex(GPU)
    assert apex.usable == (fault is None)
    if fault is not None:
        assert re.fullmatch(rf"NVIDIA apex does not work here \({fault}.*\)", apex.description)
        monkeypatch.setattr(fused, "find_apex", lambda device: apex)
        assert choose_optimizer("AdamW", {"lr": 0.1}, GPU)[1] == f"torch AdamW, fused ({apex.description})"
        assert fuse_layer_norms(nn.LayerNorm(4), GPU) == f"torch LayerNorm ({apex.description})"


def test_norms_without_a_bias_stay_torchs(monkeypatch):
    """ModernBERT has such norms, and apex's kernel has no form for them."""
    apex = types.SimpleNamespace(usable=True, description="works")
    normalization = types.SimpleNamespace(FusedLayerNorm=type("FusedLayerNorm", (nn.LayerNorm,), {}))
    monkeypatch.setattr(fused, "find_apex", lambda device: apex)
    monkeypatch.setitem(sys.modules, "apex.normalization", normalization)
    model = nn.Sequential(nn.LayerNorm(4), nn.LayerNorm(4, bias=False))
    assert fuse_layer_norms(model, GPU) == "apex FusedLayerNorm"
    assert [type(norm).__name__ for norm in model] == ["FusedLayerNorm", "LayerNorm"]
    assert model[1].bias is None


def tries_here(monkeypatch):
    """Trials for a GPU run on the CPU."""
    for trial in (fused._try_layer_norm, fused._try_adam, fused._try_lamb):
        monkeypatch.setattr(fused, trial.__name__, lambda made, device, trial=trial: trial(made, CPU))


def test_an_apex_that_fails_at_import_is_passed_over(install):
    broken = "raise OSError('undefined symbol: _ZN3c10')"
    install({"__init__.py": "", "normalization.py": broken, "optimizers.py": ""}, "Extensions written by NVIDIA")
    assert find_apex(CPU).description == "NVIDIA apex cannot be imported (OSError: undefined symbol: _ZN3c10)"


def test_deepspeeds_lamb_is_tried(monkeypatch):
    tries_here(monkeypatch)
    monkeypatch.setattr("deepspeed.ops.lamb.FusedLamb", right_lamb)
    assert choose_optimizer("Lamb", {"lr": 0.1}, GPU)[1] == "DeepSpeed FusedLamb"
    monkeypatch.setattr("deepspeed.ops.lamb.FusedLamb", refuse)
    message = (
        "optimizer.type Lamb: NVIDIA apex is not installed, and DeepSpeed's FusedLamb does not work here "
        "(RuntimeError: CUDA error: no kernel image is available for execution on the device); use AdamW, or install "
        "the CUDA toolkit that torch was built with, with which DeepSpeed compiles it"
    )
    with pytest.raises(ConfigError, match=re.escape(message)):
        choose_optimizer("Lamb", {"lr": 0.1}, GPU)


def test_cpu_adam_is_tried(monkeypatch):
    monkeypatch.setattr("deepspeed.ops.adam.DeepSpeedCPUAdam", torch.optim.AdamW)
    assert fused.fault_of_cpu_adam() is None
    monkeypatch.setattr("deepspeed.ops.adam.DeepSpeedCPUAdam", Nothing)
    assert fused.fault_of_cpu_adam() == "ArithmeticError: wrong numbers (step of AdamW)"


@pytest.mark.parametrize(
    ("target", "text"), [("ctc", "CTC in batched PyTorch (cpu)"), ("dag", "DAG in batched PyTorch (cpu)")]
)
def test_the_line_of_kernels_names_those_of_the_models_loss(target, text):
    model = nn.Linear(1, 1)
    model.config = types.SimpleNamespace(target=target)
    assert engine._dynamic_programme(model, CPU) == text
    assert engine._dynamic_programme(nn.Linear(1, 1), CPU) == "CTC in batched PyTorch (cpu)"
