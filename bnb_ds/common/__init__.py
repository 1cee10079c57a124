"""Small tools that every folder may use: safe files, packed rows, counter-based randomness, argument types.

It has no face; import its modules directly.
"""
