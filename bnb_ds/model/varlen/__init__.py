"""Attention over sequences of different lengths without padding: kernels of GPUs, which of them work, and a CPU's way.

Face: `choice.best_way`, `choice.description`, `operators.WAYS`.
"""
