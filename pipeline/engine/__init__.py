"""Ray: the driver, its workers, what happens in them, and who is blamed for a failure. Imports
all packages above it, report included. Begin with `runner`, then `driver`.
"""
