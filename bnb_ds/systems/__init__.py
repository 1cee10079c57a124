"""One adapter for each kind of model that can be fine-tuned and evaluated (``model.kind`` of a recipe).

Face: `base.System`, `kinds.ModelChoice`, `kinds.system_class`, `model_dir.load_system`.
"""
