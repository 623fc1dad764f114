"""From a model file to HTTP."""
