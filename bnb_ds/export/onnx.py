"""``bnb-ds export --format onnx``: write encoder, decoder and arg-max as one graph for ONNX Runtime.

The directory holds ``model.onnx`` (large weights in a file of their own), ``config.json``, the tokenizers, and of a
fine-tuned model ``task.json`` with its lengths.

    inputs    input_ids       int64 [batch, columns]   real tokens first in each row
              attention_mask  int64 [batch, columns]   1 at real tokens, else 0
    output    path            int64 [batch, slots]     the best class of each slot; merge repeats, then drop the blank

With a graph of slots there is one more input, and the output needs no merging:

    input     lookahead_beta  float32 []               weight of tokens in the choice of links; 1, or 0: greedy
    output    path            int64 [batch, slots]     the tokens of the output, then -1
"""

from __future__ import annotations

import contextlib
import importlib
import io
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch

from bnb_ds.common.files import new_directory, refuse_directory
from bnb_ds.common.hub import ONNX_FILE, TARGET_TOKENIZER
from bnb_ds.errors import ConfigError, how_to_install
from bnb_ds.export.model_card import front_matter, metadata, usage
from bnb_ds.generate.open_model import load_exported
from bnb_ds.generate.reading import SourceReader
from bnb_ds.model.backbones.entries import positions_of
from bnb_ds.model.fixed_shape import RectangularBnb
from bnb_ds.modeling import BnbForConditionalGeneration
from bnb_ds.systems.base import TASK_FILE
from bnb_ds.systems.model_dir import saved_data

ONNX_DTYPES = ("fp32", "int8")
_CARD = """{head}# A BERT-NAR-BERT model for ONNX Runtime ({dtype})

Written from `{source}` by `bnb-ds export --format onnx`. Use it with `bnb-ds generate`, `bnb-ds serve`, or in Python:

{usage}

Other programs run the graph itself. `tokenizer.json` reads sources. `{writes}` writes outputs.

{graph}
"""


def export_onnx(source: Path, output: Path, *, dtype: str = "fp32") -> None:
    """Write an exported model as a directory that ONNX Runtime reads.

    Args:
        source: a directory that ``bnb-ds export`` wrote.
        output: a directory that does not exist yet, or is empty.
        dtype: ``fp32`` or ``int8``. With ``int8`` the weights of matrix products have 8 bits, and their inputs are
            quantised at run time.

    Raises:
        CheckpointError: the source is not an exported model, or gives labels.
        ConfigError: a package is missing, or the model predicts lengths.
        DataError: ``output`` exists already.
    """
    if dtype not in ONNX_DTYPES:
        raise ConfigError(f"--dtype {dtype}: with --format onnx give one of: {', '.join(ONNX_DTYPES)}")
    require_packages()
    refuse_directory(output, is_new=True)
    reader = SourceReader.load(source)
    model, codec = load_exported(source, torch.device("cpu")), reader.codec
    RectangularBnb(model)  # its checks come before a directory is made
    with new_directory(output) as directory:
        write_graph(model, directory, dtype)
        codec.save(directory)
        if (source / TASK_FILE).is_file():
            shutil.copyfile(source / TASK_FILE, directory / TASK_FILE)
        graph = (__doc__ or "").split("\n\n", 2)[2].rstrip()
        writes = "tokenizer.json" if codec.target is codec.source else f"{TARGET_TOKENIZER}/tokenizer.json"
        data = metadata(
            {"data": saved_data(source)}, task=reader.task, pipeline_tag=None if reader.task else "fill-mask"
        )
        data.library_name = "onnx"
        card = _CARD.format(
            head=front_matter(data),
            dtype=dtype,
            source=source.name,
            usage=usage(reader.task, mask=codec.source.mask_token),
            writes=writes,
            graph=graph,
        )
        (directory / "README.md").write_text(card, encoding="utf-8")


def write_graph(model: BnbForConditionalGeneration, directory: Path, dtype: str = "fp32") -> None:
    """Write ``model.onnx`` and ``config.json`` of a model on the CPU into an existing directory."""
    _trace(RectangularBnb(model).eval(), directory / ONNX_FILE)
    if dtype == "int8":
        _quantise(directory)
    model.config.save_pretrained(directory)


def require_packages() -> None:
    """Raise ConfigError if the extra ``[onnx]`` is not installed."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        try:
            importlib.import_module(package)
        except ImportError:
            raise ConfigError(f"--format onnx needs the package {package}: {how_to_install('onnx')}") from None


def _trace(graph: RectangularBnb, path: Path) -> None:
    """Trace with two rows of different length; all other sizes of the graph follow from the input's shape."""
    columns = min(8, positions_of(graph.config.encoder))
    input_ids = torch.ones(2, columns, dtype=torch.int64)
    attention_mask = torch.ones_like(input_ids)
    attention_mask[1, columns // 2 :] = 0
    axes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    inputs: dict[str, tuple[torch.Tensor, Any]] = {
        "input_ids": (input_ids, axes),
        "attention_mask": (attention_mask, axes),
    }
    if graph.config.target_kind == "dag":
        inputs["lookahead_beta"] = (torch.tensor(1.0), None)
    # The exporter prints its progress, and a warning about torchvision, to standard output.
    with torch.no_grad(), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            graph,
            tuple(value for value, _ in inputs.values()),
            dynamo=True,
            input_names=list(inputs),
            output_names=["path"],
            dynamic_shapes={name: shape for name, (_, shape) in inputs.items()},
            verbose=False,
        )
        program.save(str(path))


def _quantise(directory: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    path, plain = directory / ONNX_FILE, directory / "fp32.onnx"
    for file in directory.glob(f"{ONNX_FILE}*"):
        if file != path:  # the graph refers to its weight files by name
            continue
        file.rename(plain)
    quantize_dynamic(
        str(plain), str(path), op_types_to_quantize=["MatMul", "Gemm"], per_channel=True, weight_type=QuantType.QInt8
    )
    plain.unlink()
    (directory / f"{ONNX_FILE}.data").unlink(missing_ok=True)
