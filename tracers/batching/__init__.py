"""Lay out prompts for forward passes that share prefixes and fit into memory."""
