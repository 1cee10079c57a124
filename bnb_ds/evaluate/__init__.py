"""Outputs and scores of a model on a split, significance, and the rows of the paper's tables.

Face: `model.evaluate_model`, `significance.compare`, `split.evaluate_split`.
"""
