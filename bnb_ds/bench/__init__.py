"""Side-by-side measurements: ``bnb-ds bench``. Ratios within one run are what carries over between machines."""
