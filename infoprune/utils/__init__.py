"""Helpers without a subject of their own: processes, modes, tables."""
