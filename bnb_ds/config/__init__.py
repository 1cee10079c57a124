"""What a recipe and a DeepSpeed JSON may say, read and checked.

Face: `deepspeed.DsConfig`, `deepspeed.load_ds_config`, `loading.load_recipe`, `recipe.PretrainRecipe`,
`recipe.Section`, `recipe.TrainingRecipe`.
"""
