"""What a model is: the manifest, the single-file artifact, distributions, calibration, metrics, losses and networks."""

import os

# Read when ONNX Runtime starts. Its official builds send usage data to their maker unless they are told not to; a model of
# somebody's business is no place for that. Whoever wants it sets the variable to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
