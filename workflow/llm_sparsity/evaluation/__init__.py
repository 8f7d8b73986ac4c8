"""Evaluation: perplexity, zero-shot accuracy, classification metrics, weight statistics.

This package alone knows what a score means and how it is computed.
"""
