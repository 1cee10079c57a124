"""Attention on a GPU over sequences of different lengths without padding: the kernels, and which of them work.

Face: `kernel_choice.best_way`, `kernel_choice.description`, `operators.WAYS`.
"""
