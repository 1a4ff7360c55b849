"""The run folder: its commit protocol, lease, plan file, manifests and status file, and the modules
that read a run. Imports storage, models, tables and datasets. Begin with `folder`.
"""
