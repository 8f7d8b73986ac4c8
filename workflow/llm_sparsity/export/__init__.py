"""How a model leaves: a folder that plain transformers and other programs load, with a model card.

This package alone knows what other programs, the hub and their readers expect. It changes no weight.
"""
