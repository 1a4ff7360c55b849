"""Exports: labelled training sets from the pictures of a run, in several formats and with a dataset
card. Imports runs, planning and the packages that these import. Begin with `write`.
"""
