"""The study `knowledge`: where knowledge is stored, and whether one stage understands another's representation."""
