"""Pre-training: plan, run, evaluation, entry point.

Face: `main.main`, `plan.make_plan`, `run.pretrain`.
"""
