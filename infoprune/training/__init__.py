"""Trains a model in place."""
