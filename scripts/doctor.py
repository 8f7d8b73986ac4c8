"""`llm-sparsity doctor`, from a checkout."""

import sys

from llm_sparsity.cli.main import main

main(["doctor", *sys.argv[1:]])
