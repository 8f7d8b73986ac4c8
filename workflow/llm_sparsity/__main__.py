"""`python -m llm_sparsity` is the command `llm-sparsity`."""

from llm_sparsity.cli.main import main

if __name__ == "__main__":
    main()
