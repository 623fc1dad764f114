"""The HTTP routes: they translate, and know nothing of arrays."""
