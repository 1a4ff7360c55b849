"""The registry of networks: their descriptions, the download and the verification of their weights.
Imports storage. Begin with `catalogue`.
"""
