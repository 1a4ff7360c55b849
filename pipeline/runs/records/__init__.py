"""The records that a run keeps beside its tables, as JSON: its plan, manifests and status. Begin
with `stored_plan`.
"""
