"""`llm-sparsity export`, from a checkout."""

import sys

from llm_sparsity.cli.main import main

main(["export", *sys.argv[1:]])
