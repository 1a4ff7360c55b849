"""The run folder: its commit protocol and lease, its records (`records`), and the modules that read
a run. Imports storage, models, tables and datasets. Begin with `folder`.
"""
