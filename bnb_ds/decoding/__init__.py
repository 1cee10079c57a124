"""Turns the network's output into token ids: greedy, prefix beam, length beam.

Face: `DecodeOptions`, `GenerateOutput`, `generate`, `generate_rows`.
"""

from bnb_ds.decoding.decode import GenerateOutput, generate, generate_rows
from bnb_ds.decoding.options import DecodeOptions

__all__ = ["DecodeOptions", "GenerateOutput", "generate", "generate_rows"]
