"""What a model is: the manifest, the single-file artifact, distributions, calibration, metrics, losses and networks."""
