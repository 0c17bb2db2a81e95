"""Removes channels and proves the result."""
