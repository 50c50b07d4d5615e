"""The study `difference`: what changed between stages on any text, with no labels and no hypothesis."""
