"""Search for good settings of a run: many short runs, of which the hopeless ones are ended early."""
