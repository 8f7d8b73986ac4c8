"""`llm-sparsity generate`, from a checkout."""

import sys

from llm_sparsity.cli.main import main

main(["generate", *sys.argv[1:]])
