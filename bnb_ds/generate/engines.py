"""Engines that run the model for generation: packed torch, compiled torch, and ONNX Runtime.

All engines take token ids of sources and return token ids of outputs, in the order of the sources. The packed engine
computes no padding and supports every option. The others run graphs of fixed shape and decode greedily.
"""

from __future__ import annotations

import bisect
import importlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from bnb_ds.common.hub import ONNX_FILE
from bnb_ds.ctc.greedy import collapse
from bnb_ds.decoding.batching import default_token_budget, plan_batches
from bnb_ds.decoding.decode import generate_rows
from bnb_ds.decoding.options import DecodeOptions
from bnb_ds.errors import CheckpointError, ConfigError, how_to_install
from bnb_ds.model.backbones.entries import positions_of
from bnb_ds.model.configuration import BnbConfig
from bnb_ds.model.fixed_shape import RectangularBnb, num_slot_columns
from bnb_ds.modeling import BnbForConditionalGeneration
from bnb_ds.systems.shown_targets import refuse_refinement

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
#: columns of the compiled shapes; one more shape fits the model's longest source
COLUMN_BUCKETS = (16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144)

Output = tuple[list[int], float | None]


class Engine(Protocol):
    """The interface of an engine."""

    config: BnbConfig
    name: str

    def check(self, options: DecodeOptions, *, with_scores: bool) -> None:
        """Raise ConfigError for options that the engine does not support."""

    def decode(
        self, rows: Sequence[Sequence[int]], options: DecodeOptions, *, with_scores: bool = False
    ) -> list[Output]:
        """The output tokens of each source, and its score (None unless ``with_scores``)."""


class TorchEngine:
    """Runs the model on packed batches, by `bnb_ds.decoding.decode.generate_rows`.

    Args:
        model: the model.
        dtype: a key of `DTYPES`.
        why_not_refined: see `bnb_ds.systems.shown_targets`; None: the model may be refined.
    """

    def __init__(self, model: BnbForConditionalGeneration, dtype: str = "fp32", why_not_refined: str | None = None):
        self.model = model.eval().to(DTYPES[dtype])
        self._why_not_refined = why_not_refined
        self.config = model.config
        self.name = f"torch {dtype} on {model.device.type}{_slowly(dtype, model.device)}"

    def check(self, options: DecodeOptions, *, with_scores: bool) -> None:
        """See `Engine`."""
        options.check(self.config)
        refuse_refinement(options.refinement, self._why_not_refined)

    def decode(
        self, rows: Sequence[Sequence[int]], options: DecodeOptions, *, with_scores: bool = False
    ) -> list[Output]:
        """See `Engine`."""
        return generate_rows(self.model, rows, options, with_scores=with_scores)


class _GraphEngine:
    """Base of the engines with fixed graphs: it pads rows to rectangles and decodes greedily."""

    config: BnbConfig
    name: str
    _kind: str
    _budget: int

    def check(self, options: DecodeOptions, *, with_scores: bool) -> None:
        """See `Engine`."""
        options.check(self.config)
        # The graph lowers the blank as the model was saved with.
        own = DecodeOptions.of_model(self.config).blank_penalty
        allowed = DecodeOptions(token_budget=options.token_budget, blank_penalty=own)
        if self.config.target_kind == "dag":
            if options.strategy in (None, "greedy", "lookahead"):
                allowed = replace(allowed, strategy=options.strategy, lookahead_beta=options.lookahead_beta)
            if with_scores or options != allowed:
                raise ConfigError(
                    f"{self._kind} decodes a graph by greedy or lookahead, without scores or limits: leave other "
                    "options out, or run the torch model without --compile"
                )
        elif with_scores or options != allowed:
            raise ConfigError(
                f"{self._kind} only decodes greedily, without scores or limits, in one pass: leave those options out, "
                "or run the torch model without --compile"
            )

    def decode(
        self, rows: Sequence[Sequence[int]], options: DecodeOptions, *, with_scores: bool = False
    ) -> list[Output]:
        """See `Engine`."""
        outputs: list[Output] = [([], None)] * len(rows)
        lengths = [self._columns(len(row)) for row in rows]
        is_graph = self.config.target_kind == "dag"
        beta = np.float32(0.0 if options.strategy == "greedy" else options.lookahead_beta)
        more = (np.array(beta),) if is_graph else ()
        for batch in plan_batches(lengths, self.config, options.token_budget or self._budget):
            path = self._run(*self._rectangle([rows[index] for index in batch]), *more)[: len(batch)]
            counts = torch.full((len(batch),), path.shape[1])
            blank = self.config.blank_token_id
            ids, ends = (path, (path >= 0).sum(1)) if is_graph else collapse(path, counts, blank)
            for index, tokens, end in zip(batch, ids.tolist(), ends.tolist(), strict=True):
                outputs[index] = (tokens[:end], None)
        return outputs

    def _columns(self, num_tokens: int) -> int:
        """Columns of the rectangle that a source needs."""
        return positions_of(self.config.encoder) if self.config.decoder_length == "padded" else num_tokens

    def _num_rows(self, num_sources: int) -> int:
        return num_sources

    def _rectangle(self, rows: list[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
        """Token ids and mask, int64 [B, L] each; rows beyond the sources repeat the first source."""
        num_columns = max(self._columns(len(row)) for row in rows)
        ids = np.full((self._num_rows(len(rows)), num_columns), self.config.source_pad_token_id or 0, np.int64)
        mask = np.zeros_like(ids)
        for place in range(len(ids)):
            row = rows[place if place < len(rows) else 0]
            ids[place, : len(row)] = row
            mask[place, : len(row)] = 1
        return ids, mask

    def _run(self, *inputs: np.ndarray) -> Tensor:
        """The result of `RectangularBnb` for its inputs."""
        raise NotImplementedError


class CompiledEngine(_GraphEngine):
    """Runs ``torch.compile`` for a few shapes: columns from `COLUMN_BUCKETS`, and rows rounded up to a power of two.

    On a GPU each shape is also recorded as a CUDA graph (``reduce-overhead``).
    """

    _kind = "a compiled model"

    def __init__(self, model: BnbForConditionalGeneration, dtype: str = "fp32"):
        model = model.eval().to(DTYPES[dtype])
        self.config = model.config
        self.name = f"torch.compile {dtype} on {model.device.type}{_slowly(dtype, model.device)}"
        self._device = model.device
        self._budget = default_token_budget(model.device)
        longest = positions_of(model.config.encoder)
        # The slots of a bucket must fit the decoder's positions; the last bucket is the longest source that fits.
        while longest > 1 and not _fits(longest, model.config):
            longest -= 1
        self._buckets = sorted({*(bucket for bucket in COLUMN_BUCKETS if bucket < longest), longest})
        settings: Any = importlib.import_module("torch._dynamo.config")
        settings.recompile_limit = max(settings.recompile_limit, 8 * len(self._buckets))
        mode = "reduce-overhead" if model.device.type == "cuda" else None
        self._graph: Callable[..., Tensor] = torch.compile(RectangularBnb(model), dynamic=False, mode=mode)

    def _columns(self, num_tokens: int) -> int:
        if self.config.decoder_length == "padded":
            return super()._columns(num_tokens)
        return self._buckets[min(bisect.bisect_left(self._buckets, num_tokens), len(self._buckets) - 1)]

    def _num_rows(self, num_sources: int) -> int:
        return 1 << (num_sources - 1).bit_length()

    @torch.inference_mode()
    def _run(self, *inputs: np.ndarray) -> Tensor:
        return self._graph(*(torch.from_numpy(array).to(self._device) for array in inputs)).clone().cpu()


class OnnxEngine(_GraphEngine):
    """Runs ONNX Runtime on the CPU, from a directory that ``bnb-ds export --format onnx`` wrote.

    Raises:
        ConfigError: onnxruntime is not installed.
        CheckpointError: the graph cannot be read.
    """

    _kind = "an ONNX model"

    def __init__(self, directory: Path, num_threads: int | None = None):
        try:
            runtime = importlib.import_module("onnxruntime")
        except ImportError:
            raise ConfigError(f"{directory}: an ONNX model needs onnxruntime: {how_to_install('onnx')}") from None
        self.config = BnbConfig.from_pretrained(directory)
        self.name = "ONNX Runtime on cpu"
        self._budget = default_token_budget(torch.device("cpu"))
        settings = runtime.SessionOptions()
        settings.intra_op_num_threads = num_threads or torch.get_num_threads()
        settings.log_severity_level = 3
        try:
            self._session = runtime.InferenceSession(
                str(directory / ONNX_FILE), settings, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's errors have no common base class
            reason = " ".join(str(error).split())
            raise CheckpointError(f"{directory / ONNX_FILE}: cannot be read ({reason}); export it again") from None

    def _run(self, *inputs: np.ndarray) -> Tensor:
        names = [given.name for given in self._session.get_inputs()]
        (path,) = self._session.run(None, dict(zip(names, inputs, strict=True)))
        return torch.from_numpy(path)


def has_bf16(device: torch.device) -> bool:
    """Whether the device has bf16 instructions. A CPU without them is several times slower than in fp32."""
    if device.type == "cuda":
        # `torch.cuda.is_bf16_supported` also counts emulation.
        return torch.cuda.get_device_capability(device) >= (8, 0)
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return bool(supported is not None and supported())


def _slowly(dtype: str, device: torch.device) -> str:
    return ", which has no bf16 instructions: fp32 is faster here" if dtype == "bf16" and not has_bf16(device) else ""


def _fits(num_columns: int, config: BnbConfig) -> bool:
    if config.target_kind == "dag" and num_slot_columns(num_columns, config) > config.link_positions:
        return False
    if config.decoder_positions == "shared":
        return num_columns <= positions_of(config.decoder)
    return num_slot_columns(num_columns, config) <= positions_of(config.decoder)
