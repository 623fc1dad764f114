"""The HTTP routes: they translate between HTTP, the codecs and the models."""
