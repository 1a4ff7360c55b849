"""The benchmark: a matrix of runs, and its tables as text, LaTeX, JSON and a page. Imports the
engine and the report. Begin with `matrix`, then `run`.
"""
