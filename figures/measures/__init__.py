"""What is computed from arrays: intervals, patching, interventions, entropy neurons. Pure NumPy and SciPy."""
