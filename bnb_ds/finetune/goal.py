"""What a search for settings of fine-tuning is for."""

from __future__ import annotations

from bnb_ds.finetune.recipe import FinetuneRecipe
from bnb_ds.tune.study import Goal


def goal_of(recipe: FinetuneRecipe) -> Goal:
    """The best of the score that selects the checkpoint, on the split that selects it."""
    score = recipe.selection.score or recipe.declared_task.main_score
    return Goal("bnb_ds.finetune", f"eval/{score}", score != "loss", FinetuneRecipe)
