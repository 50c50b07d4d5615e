"""The study `stages`: which stage of training made a behaviour, and where in the weights."""
