"""Arrays in, predictions out: ONNX Runtime sessions, shared runs, calibrated distributions."""
