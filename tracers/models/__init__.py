"""Load a model, recognise its architecture, and read what its files say."""
