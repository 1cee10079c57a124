"""Precision of the CTC matrix products: the dtypes of their operands and of their sums, and the products themselves."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from bnb_ds.common.trials import expect, fault_of

# On CUDA from torch 2.8 on, torch.mm can add up 16-bit products in float32 and return them in float32.
_MM_HAS_OUT_DTYPE = "dtype" in torch.ops.aten.mm.overloads()
#: 16-bit weight -> what `operand` made of it; an entry lives as long as its weight
_CONVERTED = WeakTensorKeyDictionary()


def compute_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """The dtype to which the operands of the matrix products are rounded: autocast's where autocast is on."""
    dtype = torch.promote_types(hidden.dtype, weight.dtype)
    device_type = hidden.device.type
    if torch.is_autocast_enabled(device_type) and dtype != torch.float64:
        return torch.get_autocast_dtype(device_type)
    return dtype


def exact_dtype(compute_dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums, logsumexp and the dynamic programme: float32, or float64 for float64."""
    return torch.float64 if compute_dtype == torch.float64 else torch.float32


def operand(values: Tensor, compute_dtype: torch.dtype) -> Tensor:
    """``values`` rounded to ``compute_dtype``, in the dtype that `product` takes on this device.

    Some devices cannot multiply 16-bit numbers into float32 (CPU, CUDA before torch 2.8). There the rounded values are
    held in float32, so that results agree.
    """
    values = values.to(compute_dtype)
    if compute_dtype.itemsize > 2 or (values.is_cuda and _MM_HAS_OUT_DTYPE):
        return values
    return values.float()


def fixed_operand(weight_VH: Tensor, compute_dtype: torch.dtype) -> Tensor:
    """`operand` of a weight. Outside training the result is kept, so that a weight is not converted at every call."""
    is_fixed = not torch.is_grad_enabled() and weight_VH.dtype.itemsize == 2 and not weight_VH.is_inference()
    if not is_fixed or torch.compiler.is_compiling():
        return operand(weight_VH, compute_dtype)
    key = (weight_VH._version, weight_VH.data_ptr(), compute_dtype)
    known = _CONVERTED.get(weight_VH)
    if known is None or known[0] != key:
        converted = operand(weight_VH, compute_dtype)
        if converted.data_ptr() == weight_VH.data_ptr():
            return converted
        known = _CONVERTED[weight_VH] = (key, converted)
    return known[1]


def product(left: Tensor, right: Tensor, compute_dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
    """Matrix product of two operands, added up and returned in their exact dtype; in ``out`` if it is given."""
    if left.dtype != exact_dtype(compute_dtype):
        if out is None:
            return torch.mm(left, right, out_dtype=exact_dtype(compute_dtype))
        return torch.mm(left, right, out_dtype=exact_dtype(compute_dtype), out=out)
    with _tensor_cores(left, compute_dtype):
        return torch.mm(left, right) if out is None else torch.mm(left, right, out=out)


def add_product(total: Tensor, left: Tensor, right: Tensor, compute_dtype: torch.dtype) -> None:
    """Add the product of two operands to ``total``, in place. The sum is not written anywhere else if torch can."""
    if left.dtype == total.dtype:
        with _tensor_cores(left, compute_dtype):
            total.addmm_(left, right)
    elif _adds_in_place(left.device, compute_dtype):
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)
    else:
        total.add_(torch.mm(left, right, out_dtype=total.dtype))


def empty_rows(num_rows: int, num_columns: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory for rows; on a GPU the stride of a row is a multiple of 64 numbers.

    The sizes of vocabularies are rarely multiples of 8, and with such a stride rows would lose the alignment that the
    fast matrix kernels and wide loads need.
    """
    stride = num_columns if device.type == "cpu" else -(-num_columns // 64) * 64
    return torch.empty(num_rows, stride, dtype=dtype, device=device)[:, :num_columns]


def operand_rows(values_CV: Tensor, compute_dtype: torch.dtype) -> Tensor:
    """`operand` of the rows of `empty_rows`, for 16 bits; the result has their alignment too."""
    if values_CV.device.type == "cpu":
        return operand(values_CV, compute_dtype)
    held = compute_dtype if values_CV.is_cuda and _MM_HAS_OUT_DTYPE else torch.float32
    for dtype in (compute_dtype, held):
        if values_CV.dtype != dtype:
            values_CV = empty_rows(len(values_CV), values_CV.shape[1], dtype, values_CV.device).copy_(values_CV)
    return values_CV


def _tensor_cores(left: Tensor, compute_dtype: torch.dtype) -> contextlib.AbstractContextManager[None]:
    """Let a product of 16-bit numbers that are held in float32 run in TF32, which holds them without rounding."""
    is_rounded = compute_dtype.itemsize == 2 and left.dtype == torch.float32
    if left.device.type != "cuda" or not is_rounded or torch.compiler.is_compiling():
        return contextlib.nullcontext()
    return tf32()


@contextlib.contextmanager
def tf32() -> Iterator[None]:
    """TF32 in the matrix products of float32 on CUDA, for a while."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


@functools.cache
def _adds_in_place(device: torch.device, compute_dtype: torch.dtype) -> bool:
    """Whether ``torch.addmm`` can add a product of 16-bit numbers to a float32 sum in place; tried once."""

    def trial() -> None:
        left = torch.arange(64 * 48, device=device).mul(1.7).sin().view(48, 64).t().to(compute_dtype)
        right = torch.arange(48 * 24, device=device).cos().view(48, 24).to(compute_dtype)
        total = torch.arange(64 * 24, dtype=torch.float32, device=device).mul(0.3).sin().view(64, 24)
        expected = total.double() + left.double() @ right.double()
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)
        expect("sum of products", total, expected, 1e-5)

    return fault_of(trial, "torch.addmm with out_dtype", "take torch 2.7") is None
