"""Kinds of models that the launcher fine-tunes, evaluates and compares: one adapter for each `model.kind`.

Face: `base.System`, `model_dir.load_system`, `registry.ModelChoice`, `registry.system_class`.
"""
