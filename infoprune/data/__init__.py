"""Data sets on their way to the model."""
