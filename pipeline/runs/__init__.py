"""A run folder: its commit protocol, lease, plan file, manifests and status file, and what reads
a run. Imports storage, models, tables and datasets. Begin with `folder`.
"""
