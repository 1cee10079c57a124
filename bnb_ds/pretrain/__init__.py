"""The pre-training run: plan, objective, evaluation, entry point.

Face: `main.main`, `plan.make_plan`, `run.pretrain`.
"""
