"""Statistics of arrays: intervals, calibration, patching, interventions, entropy neurons. Pure NumPy and SciPy."""
