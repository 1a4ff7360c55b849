"""Descriptions of networks, where their weights come from and how they are checked. Imports
storage. Begin with `catalogue`.
"""
