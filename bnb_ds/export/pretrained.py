"""From a DeepSpeed checkpoint to a Hugging Face directory that needs nothing of the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bnb_ds.checkpoint import store
from bnb_ds.checkpoint.run_dir import locate_checkpoint, run_of
from bnb_ds.checkpoint.weights import read_weights
from bnb_ds.common.files import new_directory
from bnb_ds.data.tokenization import load_tokenizer, save_tokenizer
from bnb_ds.encoder_mlm import without_head
from bnb_ds.errors import CheckpointError, ConfigError
from bnb_ds.export.finetuned import best_of, export_task_model
from bnb_ds.export.model_card import read_history, versions_and_recipe
from bnb_ds.model.classification import encoder_of
from bnb_ds.modeling import BnbConfig, BnbForConditionalGeneration
from bnb_ds.systems import TASK_FILE


def export(source: Path, output: Path, *, encoder_only: bool = False) -> tuple[Path, list[str]]:
    """Write an exported model.

    Args:
        source: a run's output directory (its newest checkpoint; of fine-tuning its best), or one checkpoint.
        output: a directory that does not exist yet, or is empty.
        encoder_only: write the encoder alone, as a `transformers.BertModel`.

    Returns:
        The checkpoint that was exported and lines worth telling the user.

    Raises:
        CheckpointError: no whole checkpoint.
        ConfigError: ``encoder_only`` of a fine-tuned model.
        DataError: ``output`` exists already.
    """
    found, notes = locate_checkpoint(source)
    run = run_of(found)
    if (run / "model" / TASK_FILE).is_file():
        if encoder_only:
            raise ConfigError(f"--encoder: {run} is a fine-tuned model; export the run it started from")
        found = best_of(run) if source.resolve() == run.resolve() else found
        export_task_model(run, found, output)
        return found, notes
    if not (run / "model" / "config.json").is_file():
        raise CheckpointError(f"{run}: has no model/config.json; restore it from a copy of the run")
    model = BnbForConditionalGeneration(BnbConfig.from_pretrained(run / "model"))
    model.load_state_dict(without_head(read_weights(found)))
    tokenizer, card = load_tokenizer(run / "model"), model_card(run, found, encoder_only=encoder_only)
    with new_directory(output) as directory:
        (encoder_of(model).to_bert() if encoder_only else model).save_pretrained(directory)
        save_tokenizer(tokenizer, directory)
        (directory / "README.md").write_text(card, encoding="utf-8")
    return found, notes


_USE_MODEL = """import bnb_ds
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")
model = AutoModelForSeq2SeqLM.from_pretrained(".")
inputs = tokenizer(["A sentence with a [MASK] word."], return_tensors="pt")
outputs = model.generate(inputs["input_ids"], inputs["attention_mask"])
print(tokenizer.batch_decode(outputs, skip_special_tokens=True))"""

_USE_ENCODER = """from transformers import AutoModel, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")
encoder = AutoModel.from_pretrained(".", add_pooling_layer=False)
print(encoder(**tokenizer(["A sentence."], return_tensors="pt")).last_hidden_state.shape)"""


def model_card(run: Path, found: Path, *, encoder_only: bool) -> str:
    """README of an exported model: what it is, what it was trained on, and by which command."""
    recipe, launches = read_history(run)
    first = launches[0]
    return f"""---
library_name: transformers
tags: [bert-nar-bert, non-autoregressive, bnb_ds]
---
# BERT-NAR-BERT{", its encoder" * encoder_only}

A non-autoregressive sequence-to-sequence model (Sohrab et al., IEEE Access 2024): the whole output is written in one
parallel pass. Pre-trained to reconstruct: {recipe["objective"]["corruption"]}, {store.step_of(found):,} steps.

```python
{_USE_ENCODER if encoder_only else _USE_MODEL}
```

## Training

- data fingerprint (SHA-256 of the shard manifest): `{first["data_fingerprint"]}`
- command: `{" ".join(first["command"])}`
- launches: {len(launches)} on {_ranks(launches)} ranks; git revision {first["git_revision"] or "unknown"}

{versions_and_recipe(first, recipe)}"""


def _ranks(launches: list[dict[str, Any]]) -> str:
    return ", ".join(str(ranks) for ranks in sorted({launch["world_size"] for launch in launches}))
