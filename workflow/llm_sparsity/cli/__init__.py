"""Command line: what a user types, `llm-sparsity COMMAND`, a module for each command.

A command translates its flags and calls what does the work. Stages are scripts, which Snakemake starts.
"""
