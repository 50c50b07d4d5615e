"""Figures and tables of the study `truthfulness`: probe transfer, interventions, and how alike directions are."""
