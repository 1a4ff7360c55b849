"""Schemas, codec, rows and Parquet files of the tables, and records made from rows again.
Imports storage and models. Begin with `schemas`, then `rows`.
"""
