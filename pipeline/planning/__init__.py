"""What a run will do: its settings, plan and devices, and what may change between two starts.
Imports runs and all that it imports. Begin with `prepare`.
"""
