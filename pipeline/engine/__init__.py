"""Execution of runs with Ray: the driver, its workers, and the handling of failures. Imports the
packages from storage to report. Begin with `runner`, then `driver`.
"""
