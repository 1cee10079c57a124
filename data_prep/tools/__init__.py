"""What one does with finished shards: verify, count, measure.

Import its modules directly.
"""
