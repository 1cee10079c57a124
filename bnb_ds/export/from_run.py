"""``bnb-ds export``: find the checkpoint of a run, and export it as a Hugging Face directory."""

from __future__ import annotations

from pathlib import Path

from bnb_ds.checkpoint.averaging import average_weights, find_checkpoints
from bnb_ds.checkpoint.run_dir import locate_checkpoint, run_of
from bnb_ds.common.files import refuse_directory, write_atomic
from bnb_ds.errors import ConfigError
from bnb_ds.export.finetuned import best_of, export_task_model
from bnb_ds.export.pretrained import export_pretrained_model
from bnb_ds.systems.base import TASK_FILE


def export_average(
    sources: list[Path], output: Path, *, last: int | None = None, best: int | None = None
) -> list[Path]:
    """Write the mean of several checkpoints of one model as a model directory.

    Args:
        sources: output directories of runs, or single checkpoints.
        output: a directory that does not exist yet, or is empty.
        last: of each run, number of newest checkpoints; give this or ``best``.
        best: of each run, number of best checkpoints.

    Returns:
        The checkpoints.

    Raises:
        CheckpointError: there are fewer checkpoints, or they are not of one model.
        DataError: ``output`` exists already.
    """
    refuse_directory(output, is_new=True)
    found = find_checkpoints(sources, last=last, best=best)
    weights, newest = average_weights(found), found[-1] if best is None else found[0]
    run = run_of(newest)
    if (run / "model" / TASK_FILE).is_file():
        export_task_model(run, newest, output, weights)
    else:
        export_pretrained_model(run, newest, output, encoder_only=False, weights=weights)
    names = "".join(f"\n- `{run_of(path).name}/{path.name}`" for path in found)
    card, said = output / "README.md", f"The weights are the mean of {len(found)} checkpoints:\n{names}\n"
    write_atomic(card, f"{card.read_text(encoding='utf-8')}\n## Averaged\n\n{said}")
    return found


def export(source: Path, output: Path, *, encoder_only: bool = False) -> tuple[Path, list[str]]:
    """Write an exported model.

    Args:
        source: one checkpoint, or a run's output directory: its newest checkpoint (its best, if fine-tuned).
        output: a directory that does not exist yet, or is empty.
        encoder_only: write only the encoder, as a `transformers.BertModel`.

    Returns:
        The exported checkpoint, and notes for the user.

    Raises:
        CheckpointError: there is no whole checkpoint.
        ConfigError: ``encoder_only`` is set for a fine-tuned model.
        DataError: ``output`` exists already.
    """
    refuse_directory(output, is_new=True)
    found, notes = locate_checkpoint(source)
    run = run_of(found)
    if not (run / "model" / TASK_FILE).is_file():
        export_pretrained_model(run, found, output, encoder_only=encoder_only)
        return found, notes
    if encoder_only:
        raise ConfigError(
            f"--encoder: {run} holds a fine-tuned model; export the pre-training run that it started from"
        )
    found = best_of(run) if source.resolve() == run.resolve() else found
    export_task_model(run, found, output)
    return found, notes
