"""One file per data set: a function `load`, found by the file's name."""
