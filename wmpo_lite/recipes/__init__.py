"""Recipes: what is trained on what, in which order, with which sizes."""
