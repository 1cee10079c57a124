"""The arguments of each `bnb-ds` command. They parse, and call the code that does the work.

The functions `add_*` add a command to the parser.
"""
