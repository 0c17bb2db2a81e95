"""One file per analysis: a class with `observe` and `conclude`, found by its name."""
