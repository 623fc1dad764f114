"""The parts of `python -m benchmarks.training`: each measures, and returns a section of the page."""
