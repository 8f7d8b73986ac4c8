"""What was found: tables, claims, answers in words, figures and the page.

This package reads results and computes no model.
"""
