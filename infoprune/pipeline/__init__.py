"""The steps of a recipe and the run directory that they write to."""
