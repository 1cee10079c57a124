"""Attention over sequences of different lengths without padding: kernels of GPUs, which of them work, and a CPU's way.

Face: `kernel_choice.best_way`, `kernel_choice.description`, `operators.WAYS`.
"""
