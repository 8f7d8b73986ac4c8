"""`llm-sparsity plan`, from a checkout."""

import sys

from llm_sparsity.cli.main import main

main(["plan", *sys.argv[1:]])
