"""Evaluation: perplexity, zero-shot accuracy, scores of labels, weight statistics.

This package alone knows what a score means and how it is computed.
"""
