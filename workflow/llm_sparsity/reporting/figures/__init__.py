"""Figures: one module a kind, with the function `draw(study)` that yields the figures of that kind.

A figure is drawn from the tables alone. This package alone knows what each figure shows and how to read it.
"""
