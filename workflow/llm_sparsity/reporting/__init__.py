"""Reporting: tables, judged claims, sentences, figures and the page of a study.

This package alone knows what a study found and how it is said. It reads results and imports neither torch nor
transformers.
"""
