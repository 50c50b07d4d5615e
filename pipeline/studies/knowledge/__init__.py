"""The study `knowledge`: where is knowledge stored, and does one stage understand another's representation?"""
