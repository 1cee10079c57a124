"""Values of the settings of a model that are names; importing them loads neither torch nor transformers."""

from __future__ import annotations

DECODER_LENGTH_POLICIES = ("source", "padded", "predicted")
DECODER_POSITIONS = ("absolute", "shared")
TARGETS = ("ctc", "token", "dag")
LOSS_REDUCTIONS = ("token", "sample")
SLOT_TOKENS = ("mask", "source")
REFINED_TOKENS = ("unsure", "all")
