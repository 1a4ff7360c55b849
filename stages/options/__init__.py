"""The settings of the stages, one module per family.

A class has the name of its stage, followed by `Options`. Nothing here imports torch, so that all
settings are checked and explained at once.
"""
