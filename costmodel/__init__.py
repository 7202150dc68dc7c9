"""Cost models of loop programs: the analytic roofline, features, and (in time) the learned model."""
