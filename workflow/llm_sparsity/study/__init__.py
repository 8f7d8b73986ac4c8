"""What is computed and where it lies: the config, its cells, code fingerprints, the plan, cleaning.

Light on purpose: the Snakefile imports it where torch is not installed.
"""
