"""The naive counterpart of each engine, and the checks that compare a sample of results with it."""
