"""The commands of ``bnb-ds prep``. Each module adds arguments when its command is chosen."""
