"""`llm-sparsity clean`, from a checkout."""

import sys

from llm_sparsity.cli.main import main

main(["clean", *sys.argv[1:]])
