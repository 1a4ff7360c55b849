"""Reports: metrics and pictures of a run as HTML, Markdown, CSV and PNG. Imports runs, planning and
stats. Begin with `write`.
"""
