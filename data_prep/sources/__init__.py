"""From files of any source to documents: text, Wikipedia, PubMed, and the filters on the way.

Import its modules directly.
"""
