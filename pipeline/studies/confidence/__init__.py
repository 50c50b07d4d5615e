"""The study `confidence`: entropy neurons, what they cause, and how well calibrated the answers are."""
