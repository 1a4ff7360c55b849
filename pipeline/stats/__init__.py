"""Statistics over the images of a run: bootstrap intervals, edits at equal effect, distances
between sets of pictures. Imports storage. Begin with `bootstrap`.
"""
