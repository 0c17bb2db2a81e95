"""Writes a model for other tools."""
