"""Embedding: the latent code whose render is closest to an aligned photograph."""
