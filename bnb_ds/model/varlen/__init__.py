"""Attention over sequences of different lengths without padding: kernels of GPUs, a CPU's way, and windows.

Face: `kernel_choice.best_way`, `kernel_choice.description`, `operators.WAYS`, `operators.WINDOW_WAYS`.
"""
