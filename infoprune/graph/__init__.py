"""Channel groups, what layers cost, and the removal of whole blocks."""
