"""Small tools that every folder may use: safe files, packed rows, counter-based randomness, argument types.

Import its modules directly.
"""
