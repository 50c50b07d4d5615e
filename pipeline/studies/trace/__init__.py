"""The study `trace`: any operations on any prompts."""
