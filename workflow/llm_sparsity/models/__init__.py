"""What a tensor is for: structure, tensor roles, scopes, and how a folder becomes a transformers model.

This package alone knows tensor names. Others ask a `ModelFolder`.
"""
