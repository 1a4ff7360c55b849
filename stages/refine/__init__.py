"""Refinement: adapt the generator to each image so that its code renders the photograph."""
