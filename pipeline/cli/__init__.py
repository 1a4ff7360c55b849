"""The commands: options, output, exit codes. Imports everything else. Begin with `options`."""
