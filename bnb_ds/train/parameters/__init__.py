"""Which weights of a model are trained, from when on, and at which rates.

Face: `chosen.choose`, `groups.parameter_groups`, `unfreezing.Unfreezing`.
"""
