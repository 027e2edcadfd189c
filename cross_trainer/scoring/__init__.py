"""Pairs to scores, documents ranked, negatives found."""
