"""An HTTP service around one model: ``bnb-ds serve``."""
