"""Data: rows and their forms, corpora that can be pulled, splits."""
