"""One preparation run: parts, workers, markers, and the merge into one manifest.

Face: `prepare.prepare`.
"""
