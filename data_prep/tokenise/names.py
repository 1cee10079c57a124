"""The names of the tokenisation engines; importing them loads none of the engines."""

from __future__ import annotations

ENGINE_NAMES = ("auto", "nanotoken", "words", "tokenizers")  # "auto" tries them in this order, the fastest first
