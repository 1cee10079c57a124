"""From documents to token ids: engines proven on the input, the word dictionary, vocabularies.

Import its modules directly.
"""
