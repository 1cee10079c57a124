"""Attention kernels for GPUs: what they are given, and which is chosen. torch's operators are planted on the CPU."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bnb_ds.model import attention
from bnb_ds.model.varlen import kernel_choice as choice
from bnb_ds.model.varlen.attention_inputs import AttentionInputs
from bnb_ds.model.varlen.kernel_choice import best_way, description, fault_of
from bnb_ds.model.varlen.operators import WAYS
from tests import plain_varlen
from tests.tiny import bnb_model, layout_of, packed_form, source_ids

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
DIRECT = ["flash", "efficient"]


@pytest.fixture
def operators():
    with plain_varlen.on_cpu():
        yield


@pytest.mark.usefixtures("operators")
@pytest.mark.parametrize("way", DIRECT)
@pytest.mark.parametrize(
    ("queries", "keys"), [([4, 1, 7], [4, 1, 7]), ([8, 2, 6], [4, 1, 13]), ([1], [1]), ([2, 2], [5, 1]), ([33], [3])]
)
@pytest.mark.parametrize("scaling", [None, 0.3])
def test_operators_get_the_sequences(way, queries, keys, scaling):
    generator = torch.Generator().manual_seed(0)
    # In the layers' order of memory, heads of a token lie side by side, and the rows are views.
    leaves = [
        torch.randn(1, sum(n), 3, 8, dtype=torch.float64, generator=generator)[0].requires_grad_()
        for n in (queries, keys, keys)
    ]
    layouts = layout_of(queries), layout_of(keys)
    signal = torch.randn(sum(queries), 3, 8, dtype=torch.float64, generator=generator)
    results = []
    for name in (way, "padded"):
        attended = WAYS[name](AttentionInputs(*leaves, *layouts, scaling=scaling))
        results.append((attended, *torch.autograd.grad(attended, leaves, signal)))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    with torch.no_grad():
        attended = WAYS[way](AttentionInputs(*leaves, *layouts, scaling=scaling))
        torch.testing.assert_close(attended, results[1][0], rtol=0, atol=1e-12)


@pytest.mark.usefixtures("operators")
@pytest.mark.parametrize("way", DIRECT)
def test_a_whole_model_runs_on_the_operators(way, monkeypatch):
    size = {"hidden_size": 24}  # 3 heads of 8
    model = bnb_model(encoder=size, decoder=size)
    inputs = packed_form(source_ids([5, 3, 9]), source_ids([3, 2, 4], seed=2))
    expected = torch.autograd.grad(model(**inputs).loss_sum, model.model.latent.weight)
    monkeypatch.setattr(attention, "attention_way", lambda *_: way)
    got = torch.autograd.grad(model(**inputs).loss_sum, model.model.latent.weight)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


class Given(TorchDispatchMode):
    """What operators of attention are called with, by name; all arguments that are no tensors."""

    def __init__(self):
        super().__init__()
        self.calls = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name.endswith("attention_forward"):
            self.calls[name] = [one for one in args if not isinstance(one, torch.Tensor)]
        return function(*args, **kwargs or {})


@pytest.mark.parametrize(
    ("way", "dtype"),
    [("flash", torch.bfloat16), ("flash", torch.float16), ("efficient", torch.float16), ("efficient", torch.float32)],
)
def test_torch_takes_these_arguments_with_dropout(way, dtype):
    """Its own rules for sizes and dtypes, forward and backward, on the device without data."""
    layouts = []
    for lengths in ([3, 1, 70], [40, 2, 9]):
        host = layout_of(lengths)
        layouts.append(
            type(host)(**{name: x.to("meta") if isinstance(x, torch.Tensor) else x for name, x in vars(host).items()})
        )
    leaves = [torch.randn(n, 12, 64, device="meta", dtype=dtype).requires_grad_() for n in (74, 51, 51)]
    with Given() as given:
        attended = WAYS[way](AttentionInputs(*leaves, *layouts, dropout=0.1))
    ((name, arguments),) = given.calls.items()
    assert name == f"_{way}_attention_forward"
    assert arguments.index(0.1) > arguments.index(70), arguments  # dropout, behind the longest lengths
    assert attended.shape == leaves[0].shape
    assert attended.dtype == dtype
    gradients = torch.autograd.grad(attended, leaves, torch.empty_like(attended))
    assert [gradient.shape for gradient in gradients] == [leaf.shape for leaf in leaves]


def test_what_is_wrong_with_a_kernel_is_told_in_a_few_words():
    before = torch.get_rng_state()

    def raises(inputs):
        raise RuntimeError("CUDA error: no kernel image is available\nmore lines")

    def halves(inputs):
        return WAYS["padded"](inputs) / 2

    assert fault_of(WAYS["padded"], CPU, torch.float64, 8) is None
    assert fault_of(raises, CPU, torch.float32, 8) == "RuntimeError: CUDA error: no kernel image is available"
    assert fault_of(halves, CPU, torch.float32, 8) == "wrong by 5.0e-01"
    assert "aten::_flash_attention_forward" in fault_of(WAYS["flash"], CPU, torch.float16, 8)
    assert torch.equal(torch.get_rng_state(), before)
    with torch.inference_mode():
        assert fault_of(WAYS["padded"], CPU, torch.float32, 8) is None


@pytest.fixture
def card(monkeypatch):
    """A GPU of some capability, of which the test says what does not work."""

    def plant(capability, broken=()):
        best_way.cache_clear()
        names = {way: name for name, way in WAYS.items()}
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(
            choice, "fault_of", lambda way, *_: "RuntimeError: no kernel" if names[way] in broken else None
        )

    yield plant
    best_way.cache_clear()


@pytest.mark.parametrize(
    ("capability", "dtype", "head_size", "broken", "expected"),
    [
        ((8, 0), torch.bfloat16, 64, (), "flash"),
        ((9, 0), torch.float16, 64, (), "flash"),
        ((8, 0), torch.float32, 64, (), "efficient"),
        ((8, 0), torch.float64, 64, (), "jagged"),
        ((8, 0), torch.bfloat16, 20, (), "jagged"),
        ((8, 0), torch.bfloat16, 512, (), "efficient"),
        ((8, 0), torch.bfloat16, 64, ("flash",), "efficient"),
        ((8, 0), torch.bfloat16, 64, ("flash", "efficient"), "jagged"),
        ((8, 0), torch.bfloat16, 64, ("flash", "efficient", "jagged"), "padded"),
        ((7, 0), torch.float16, 64, (), "efficient"),
        ((7, 0), torch.float32, 64, (), "efficient"),
        ((7, 0), torch.bfloat16, 64, (), "padded"),
        ((7, 0), torch.float16, 64, ("efficient",), "padded"),
        ((6, 1), torch.float32, 64, (), "padded"),
    ],
)
def test_the_fastest_kernel_that_works_is_taken(card, capability, dtype, head_size, broken, expected):
    card(capability, broken)
    assert best_way(0, dtype, head_size).way == expected


def test_the_line_of_a_run_names_what_does_not_work(card):
    card((8, 0), ("flash",))
    assert description(GPU, torch.bfloat16, 64) == "attention efficient (not flash: RuntimeError: no kernel)"
    card((8, 0))
    assert description(GPU, torch.bfloat16, 64) == "attention flash"
    assert description(CPU, torch.float32, 64) == "attention without a GPU (cpu)"


def test_a_broken_flash_attn_is_noticed(tmp_path, monkeypatch):
    (tmp_path / "flash_attn").mkdir()
    (tmp_path / "flash_attn" / "__init__.py").write_text("raise ImportError('flash_attn_2_cuda.so: undefined symbol')")
    monkeypatch.syspath_prepend(tmp_path)
    assert choice._candidates((8, 0), torch.bfloat16, 64)[0] == "flash_attn"
    fault = fault_of(WAYS["flash_attn"], CPU, torch.bfloat16, 64)
    assert fault == "ImportError: flash_attn_2_cuda.so: undefined symbol"
