"""The Parquet tables of a run: their schemas, the codec of weights, the conversion of records to
rows and back, and the files. Imports storage and models. Begin with `schemas`, then `rows`.
"""
