"""How good is a version: metrics with the score of every row, and the baselines that a model must beat."""
