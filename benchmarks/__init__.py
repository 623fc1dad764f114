"""Measurements: quality on the standard tables, training speed, serving speed. Nothing of the product imports this."""
