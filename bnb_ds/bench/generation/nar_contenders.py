"""The non-autoregressive models that BnB is measured against, with random weights.

Each output has the length of its reference, as with the autoregressive models; that of an encoder with CTC is whatever
its random weights write, because its time depends on the source alone. iNAT takes as many passes as its random weights
need to settle, ten at most.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from bnb_ds.baselines.nar_settings import (
    CmlmSection,
    ElmerSection,
    InatSection,
    NarSection,
    NatSection,
    TransformerSize,
)
from bnb_ds.bench.generation.reference_style import POSITIONS, SIZES, Rows, Setting
from bnb_ds.config.model_section import ModelSection, ModelSize
from bnb_ds.data.tokenization import TokenizerVocabulary
from bnb_ds.decoding.decode import decode_batch, inputs_of_rows
from bnb_ds.decoding.options import DecodeOptions
from bnb_ds.generate.engines import DTYPES
from bnb_ds.model_factory import model_config
from bnb_ds.modeling import BnbForConditionalGeneration
from bnb_ds.systems.encoder_ctc import EncoderCtcSection
from bnb_ds.tasks.codec import Codec

#: name -> description at base size
NAR_CONTENDERS = {
    "nat": "6 + 6 layers, hidden size 512, one pass",
    "inat": "nat with ten passes at most",
    "cmlm": "ten passes, five lengths",
    "elmer": "nat with a prediction behind every layer",
    "encoder-ctc": "BnB's encoder alone, with a [MASK] behind each source token",
}
_SECTIONS: dict[str, type[NarSection]] = {
    "nat": NatSection,
    "inat": InatSection,
    "cmlm": CmlmSection,
    "elmer": ElmerSection,
}


def nar_contender(name: str, setting: Setting, codec: Codec) -> BnbForConditionalGeneration:
    """Make a model with random weights, on the device and in the dtype of the setting (fp32 if that is int8)."""
    section = _encoder_ctc(setting) if name == "encoder-ctc" else _with_lengths(name, setting)
    vocabularies = [TokenizerVocabulary.of(tokenizer) for tokenizer in (codec.source, codec.target)]
    # Those that copy the source have one vocabulary.
    one = replace(vocabularies[1], vocab_size=max(vocabulary.vocab_size for vocabulary in vocabularies))
    torch.manual_seed(0)
    model = BnbForConditionalGeneration(model_config(section, one, POSITIONS))
    return model.eval().to(setting.device, DTYPES.get(setting.dtype, torch.float32))


def _with_lengths(name: str, setting: Setting) -> ModelSection:
    hidden, layers, heads = SIZES[setting.size]
    size = TransformerSize()  # Transformer base is the base size; other sizes keep the proportions of BnB's
    if setting.size != "base":
        shape = {"hidden_size": hidden, "num_attention_heads": heads, "intermediate_size": 4 * hidden}
        size = TransformerSize(num_hidden_layers=max(layers // 2, 1), **shape)
    return _SECTIONS[name](kind=name, size=size).as_bnb()


def _encoder_ctc(setting: Setting) -> ModelSection:
    hidden, layers, heads = SIZES[setting.size]
    size = ModelSize(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
        max_position_embeddings=2 * POSITIONS,  # so that sources may be as long as BnB's
    )
    return EncoderCtcSection(kind="encoder_ctc", size=size).as_bnb()


@torch.inference_mode()
def write_lengths(model: BnbForConditionalGeneration, rows: Rows, lengths: list[int]) -> list[list[int]]:
    """Write one batch. Each output has the given length, which includes the end token, behind its start token.

    CTC decides on lengths itself.
    """
    options = DecodeOptions.of_model(model.config)
    if model.config.target_kind == "ctc":
        decoded = decode_batch(model, inputs_of_rows(model, rows), options)
        return [row[:end] for row, end in zip(decoded.ids.tolist(), decoded.lengths.tolist(), strict=True)]
    slots_BK = torch.tensor(lengths, device=model.device)[:, None].expand(-1, options.length_beam) + 1
    decoded = decode_batch(model, inputs_of_rows(model, rows), options, target_lengths_B=slots_BK)
    return [row[1:end] for row, end in zip(decoded.ids.tolist(), decoded.lengths.tolist(), strict=True)]
