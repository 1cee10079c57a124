"""What reads the decoder's slots: CTC, one token a slot, or a graph of slots. Each is one small class.

Face: its modules. `bnb_ds.targets.interface.Target` says what every target can do.
"""
