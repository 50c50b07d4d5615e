"""A package for each study: `data` reads its groups, `guide` says how to read its figures, the others draw them."""
