"""Evaluate models on a split of a task, compare evaluations, and list the rows of the paper's tables.

Face: `model.evaluate_model`, `significance.compare`, `split.evaluate_split`.
"""
