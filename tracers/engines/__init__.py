"""The operations on a model: read, patch, steer, generate. Each is a function of a model and can run on a server."""
