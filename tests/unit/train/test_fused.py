"""The search for NVIDIA apex. The packages are made here, because building NVIDIA apex needs a GPU."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from bnb_ds.errors import ConfigError
from bnb_ds.train.fused import choose_optimizer, find_apex, fuse_layer_norms

CPU = torch.device("cpu")


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
        find_apex()


def test_a_build_without_extensions_is_passed_over(install):
    layer = (
        "class FusedLayerNorm:\n    def __init__(self, shape):\n        raise RuntimeError('no fused_layer_norm_cuda')"
    )
    files = {"__init__.py": "", "normalization.py": layer, "optimizers.py": "FusedAdam = FusedLAMB = None"}
    install(files, "PyTorch Extensions written by NVIDIA")
    apex = find_apex()
    assert not apex.usable
    assert "without its CUDA extensions (no fused_layer_norm_cuda)" in apex.description


def test_a_build_without_its_parts_is_passed_over(install):
    install({"__init__.py": ""}, "PyTorch Extensions written by NVIDIA")
    assert "without its layers and optimizers" in find_apex().description


def test_without_apex_torch_is_used():
    assert find_apex().description == "NVIDIA apex is not installed"
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
