"""How fast predictions are served: errorbar, its ceilings, and what else people serve such a model with."""
