"""Speed of generation: BnB beside its reference implementation and beside autoregressive models."""
