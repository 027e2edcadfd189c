"""Logits and labels to figures with intervals."""
