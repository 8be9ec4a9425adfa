"""Measures of picture and movement, on arrays: every one is named with its protocol and settings."""
