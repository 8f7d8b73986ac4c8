"""What a tensor is for: families, tensor roles, scopes, and how a folder becomes a transformers model.

This package alone knows tensor names. Others ask a `ModelFolder`.
"""
