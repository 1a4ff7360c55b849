"""Access to local disks and object stores: `Storage` for runs, `locations` for images, `scratch`
for temporary folders, `ownership` for the files that may be overwritten and deleted. Imports only
the modules directly in pipeline/. Begin with `base`.
"""
