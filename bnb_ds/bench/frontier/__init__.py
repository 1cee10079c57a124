"""``bnb-ds bench frontier``: quality against speed of trained models, in one process.

Face: `comparing.add_arguments`, `contestants.read_contestant`, `measuring.measure`.
"""
