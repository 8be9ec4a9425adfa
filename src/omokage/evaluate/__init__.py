"""Held-out evaluation: splits and regions, baselines, scores, and the report."""
