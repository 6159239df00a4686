"""Loss to weights: learner, objectives, feed, optimizers, settings, run directory."""
