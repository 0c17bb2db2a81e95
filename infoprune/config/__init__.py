"""Recipes and their options: what may be asked for, and the code that they name."""
