"""Accuracy, cost and latency of a model."""
