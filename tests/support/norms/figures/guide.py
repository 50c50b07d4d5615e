"""How to read the figures of the study `norms`."""

GUIDE = (("Length of the stream", "Euclidean norm of the residual stream at a statement's last token."),)
