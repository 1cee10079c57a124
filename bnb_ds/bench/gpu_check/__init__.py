"""``runs/gpu_check.sh``: in six minutes, whether everything that a GPU computes is right there, and how fast it is.

Needs torch, transformers and NumPy, but neither DeepSpeed nor a network. Face: `parts.main`.
"""
