"""Command line: what a user types, `llm-sparsity init`, `plan`, `run`.

This package alone knows where the files of the workflow lie: in a checkout, or beside the installed library.
"""
