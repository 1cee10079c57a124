"""Attention on a GPU over sequences of different lengths without padding: the kernels, and which of them work.

Face: `choice.best_way`, `choice.description`, `operators.WAYS`.
"""
