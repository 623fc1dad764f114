"""Words that stand for a value, in a table that trains and in a request alike."""

MISSING = frozenset(["", "?", "NA", "N/A", "na", "n/a", "NaN", "NAN", "nan", "null", "NULL", "Null", "#N/A"])
"""Cells that are missing values."""
FLAGS = {"true": 1.0, "yes": 1.0, "false": 0.0, "no": 0.0}
"""Of boolean columns, in upper or lower case."""
