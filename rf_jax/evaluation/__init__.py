"""Measures of drawn pictures and of descriptions."""
