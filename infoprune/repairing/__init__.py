"""Brings accuracy back without training."""
