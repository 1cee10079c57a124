"""The arguments of each ``bnb-ds`` command, and the calls of the code that does the work.

Face: the functions ``add_NAME``, which add the arguments of the command NAME to its parser (see `bnb_ds.cli`).
"""
