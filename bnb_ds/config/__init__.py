"""Recipes and DeepSpeed JSON files: their fields, reading and checking.

Face: `deepspeed.DsConfig`, `deepspeed.load_ds_config`, `loading.load_recipe`, `sections.PretrainRecipe`,
`sections.Section`, `sections.TrainingRecipe`.
"""
