"""The commands: options, output and exit codes. Imports all other packages of pipeline/. Begin with
`options`.
"""
