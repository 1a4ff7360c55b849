"""Numbers without files: bootstrap intervals, edits at equal effect, distances between sets of
pictures. Imports no other package. Begin with `bootstrap`.
"""
