"""nestegg: a tensor and loop-program optimizer built on equality saturation."""
