"""Where bytes are: local disks and object stores behind one `Storage`, locations of images,
scratch folders. Imports the ground files of pipeline/ only. Begin with `base`.
"""
