"""The study `norms`: how long is the residual stream, and does it tell true statements from false ones?"""
