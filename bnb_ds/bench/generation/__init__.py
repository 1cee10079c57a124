"""``bnb-ds bench generate``: generation speed of BnB, its reference implementation and autoregressive models.

Face: `command.add_arguments`.
"""
