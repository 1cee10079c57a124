"""Tokenizers of all families: which of them go, what their pieces write, and where words begin.

Face: `rules.piece_rules`, `rules.PieceRules`, `tokenizer_json.read_subword_tokenizer`.
"""
