"""The autoregressive models that BnB is measured against, with random weights and a key-value cache.

Speed depends only on sizes and lengths, so no weights are read. `bnb_ds.baselines.build` makes the models, as for
training.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import BartConfig

from bnb_ds.baselines import build
from bnb_ds.baselines.seq2seq import AutoregressiveModel, BeamOptions
from bnb_ds.baselines.settings import Bert2bertSection, Seq2SeqSize, TransformerSection
from bnb_ds.bench.generation.reference_style import POSITIONS, SIZES, Rows, Setting
from bnb_ds.data.tokenization import vocabulary_size
from bnb_ds.generate.engines import DTYPES
from bnb_ds.tasks.codec import Codec

#: name -> description at base size
CONTENDERS = {
    "bert2bert": "BERT encoder and decoder of BnB's size",
    "deep-shallow": "bert2bert with one decoder layer (Kasai et al., 2021)",
    "transformer": "the paper's Transformer, 6 + 6 layers, hidden size 512",
    "bart": "BART base, 6 + 6 layers, hidden size 768",
}
# Lewis et al., 2020: each half of BART base has half of a BERT's layers; it has 1,024 positions.
_BART_POSITIONS = 1024


def contender(name: str, setting: Setting, codec: Codec) -> AutoregressiveModel:
    """Make a model with random weights, on the device and in the dtype of the setting (fp32 if that is int8)."""
    torch.manual_seed(0)
    model = build.model_of(contender_config(name, setting.size, codec)).eval()
    return AutoregressiveModel(model, begins_with_start=True).to(
        setting.device, DTYPES.get(setting.dtype, torch.float32)
    )


def write_exactly(model: AutoregressiveModel, rows: Rows, lengths: list[int], num_beams: int = 1) -> list[list[int]]:
    """Write one batch. Each output has the given length, which includes the end token; that token is not returned."""
    return model.generate_rows(rows, BeamOptions(max(lengths), num_beams=num_beams), lengths=lengths)


def cache_bytes(model: AutoregressiveModel, rows: Rows, lengths: list[int], num_beams: int) -> int:
    """Bytes of the key-value cache at the last token of a batch. Each hypothesis has its own copy for the source."""
    config = getattr(model.config, "decoder", model.config)
    layers = getattr(config, "decoder_layers", None) or config.num_hidden_layers
    columns = max(map(len, rows)) + max(lengths)
    size = model.model.dtype.itemsize
    return 2 * layers * config.hidden_size * len(rows) * num_beams * columns * size


def contender_config(name: str, size: str, codec: Codec) -> Any:
    """The configuration of a model; other sizes keep the proportions of base."""
    hidden, layers, heads = SIZES[size]
    half = max(layers // 2, 1)
    if name in ("bert2bert", "deep-shallow"):
        shape = Seq2SeqSize(
            hidden_size=hidden,
            encoder_layers=layers,
            decoder_layers=layers if name == "bert2bert" else 1,
            num_attention_heads=heads,
            intermediate_size=4 * hidden,
            max_position_embeddings=POSITIONS,
        )
        return build.bert2bert_config(Bert2bertSection(kind="bert2bert", size=shape), codec.source, codec.target)
    if name == "transformer":
        shape = Seq2SeqSize()  # the paper's Transformer is the base size
        if size != "base":
            shape = Seq2SeqSize(
                hidden_size=hidden,
                encoder_layers=half,
                decoder_layers=half,
                num_attention_heads=heads,
                intermediate_size=4 * hidden,
            )
        return build.transformer_config(TransformerSection(kind="transformer", size=shape), codec.source, codec.target)
    return BartConfig(
        vocab_size=max(vocabulary_size(codec.source), vocabulary_size(codec.target)),  # BART has one vocabulary
        d_model=hidden,
        encoder_layers=half,
        decoder_layers=half,
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_ffn_dim=4 * hidden,
        decoder_ffn_dim=4 * hidden,
        max_position_embeddings=_BART_POSITIONS,
        pad_token_id=codec.target.pad_token_id,
        bos_token_id=codec.target.cls_token_id,
        eos_token_id=codec.target.sep_token_id,
        decoder_start_token_id=codec.target.cls_token_id,
        forced_eos_token_id=None,
    )
