"""Named datasets, and how their photographs are listed, read and checked; the embedded, the
synthetic and the CelebA-HQ set. Imports storage, models and tables. Begin with `items`, then
`listing`.
"""
