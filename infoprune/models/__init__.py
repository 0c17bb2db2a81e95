"""One file per model family: a function `build`, found by the file's name."""
