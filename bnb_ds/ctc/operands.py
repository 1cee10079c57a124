"""Precision of the CTC matrix products: the dtypes of their operands and of their sums, and the product itself."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

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


def product(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """Matrix product of two operands, added up and returned in ``dtype``."""
    return torch.mm(left, right) if left.dtype == dtype else torch.mm(left, right, out_dtype=dtype)
