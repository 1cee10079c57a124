"""Export a checkpoint of a pre-training run as a Hugging Face directory that is independent of the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from bnb_ds.checkpoint import store
from bnb_ds.checkpoint.pooler import kept_pooler
from bnb_ds.checkpoint.weights import read_weights
from bnb_ds.common.files import new_directory
from bnb_ds.errors import CheckpointError
from bnb_ds.export.model_card import command_of, front_matter, metadata, read_history, usage, versions_and_recipe
from bnb_ds.model.classification import encoder_of
from bnb_ds.model.configuration import BnbConfig
from bnb_ds.modeling import BnbForConditionalGeneration, without_head
from bnb_ds.tasks.codec import Codec


def export_pretrained_model(
    run: Path, found: Path, output: Path, *, encoder_only: bool, weights: dict[str, Tensor] | None = None
) -> None:
    """Write one checkpoint of a pre-training run as a model directory.

    Args:
        run: output directory of the run.
        found: the checkpoint.
        output: a directory that does not exist yet, or is empty.
        encoder_only: write only the encoder.
        weights: what to write in the place of the checkpoint's own weights.

    Raises:
        CheckpointError: files of the run or of the checkpoint cannot be read.
        DataError: ``output`` exists already.
    """
    if not (run / "model" / "config.json").is_file():
        raise CheckpointError(f"{run}: has no model/config.json; restore it from a copy of the run")
    model = BnbForConditionalGeneration(BnbConfig.from_pretrained(run / "model"))
    model.load_state_dict(without_head(weights or read_weights(found)))
    codec, pooler = Codec.load(run / "model"), kept_pooler(run / "model")
    card = model_card(run, found, encoder_only=encoder_only, has_pooler=bool(pooler), mask=codec.source.mask_token)
    with new_directory(output) as directory:
        if encoder_only:
            encoder_of(model).to_bert(pooler).save_pretrained(directory)
        else:
            model.save_pretrained(directory, state_dict={**model.state_dict(), **pooler})
        codec.save(directory)
        (directory / "README.md").write_text(card, encoding="utf-8")


_USE_ENCODER = """```python
from transformers import AutoModel, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")
encoder = AutoModel.from_pretrained("."{no_pooler})
print(encoder(**tokenizer(["A sentence."], return_tensors="pt")).last_hidden_state.shape)
```"""
_NO_POOLER = ", add_pooling_layer=False"


def model_card(run: Path, found: Path, *, encoder_only: bool, has_pooler: bool, mask: str | None) -> str:
    """The README of an exported model: how to use it, and how it was trained."""
    use_encoder = _USE_ENCODER.format(no_pooler="" if has_pooler else _NO_POOLER)
    recipe, launches = read_history(run)
    first = launches[0]
    does = "feature-extraction" if encoder_only else "fill-mask"
    return f"""{front_matter(metadata(recipe, pipeline_tag=does))}# BERT-NAR-BERT{", its encoder" * encoder_only}

A non-autoregressive sequence-to-sequence model (Sohrab et al., IEEE Access 2024): the whole output is written in one
parallel pass. Pre-trained to reconstruct: {recipe["objective"]["corruption"]}, {store.step_of(found):,} steps.

{use_encoder if encoder_only else usage(None, mask=mask)}

## Training

- data fingerprint (SHA-256 of the shard manifest): `{first["data_fingerprint"]}`
- command: `{command_of(first)}`
- launches: {len(launches)} on {_ranks(launches)} ranks; git revision {first["git_revision"] or "unknown"}

{versions_and_recipe(first, recipe)}"""


def _ranks(launches: list[dict[str, Any]]) -> str:
    return ", ".join(str(ranks) for ranks in sorted({launch["world_size"] for launch in launches}))
