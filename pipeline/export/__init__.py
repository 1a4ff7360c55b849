"""Training sets from the pictures of a run: choice, formats, labels, card, paste-back. Imports
runs, planning and what they import. Begin with `write`.
"""
