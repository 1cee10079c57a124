"""Smaller models that are made of larger ones, and that learn from them."""
