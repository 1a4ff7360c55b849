"""Execution of runs with Ray: the driver, the actors of its workers, and the handling of failures.
Begin with `runner`, then `driver`.
"""
