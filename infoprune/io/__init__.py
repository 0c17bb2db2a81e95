"""Files: written whole, read without unpickling code."""
