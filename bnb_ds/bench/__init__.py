"""``bnb-ds bench``: side-by-side measurements. Ratios within one run are comparable between machines.

Face: `subjects.add_bench`.
"""
