"""Recipes (one TOML a model and a budget) and, under devices/, device profiles. Read by `edge_svd.recipe`."""
