"""Datasets: their names, and listing, reading and checking their images. Includes the embedded, the
synthetic and the CelebA-HQ datasets. Imports storage, models and tables. Begin with `items`, then
`listing`.
"""
