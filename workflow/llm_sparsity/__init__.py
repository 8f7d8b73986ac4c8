"""How much of a pretrained transformer can be removed, and what does that really save?

One module a stage (download, prune, weights, finetune, evaluate, collect, plot); ARCHITECTURE.md draws the flow.
"""

__version__ = "0.1.0"
