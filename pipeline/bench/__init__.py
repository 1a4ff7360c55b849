"""Benchmarks: a matrix of runs, and their results as Markdown, CSV, LaTeX, JSON and HTML. Imports
the packages from storage to engine. Begin with `matrix`, then `run`.
"""
