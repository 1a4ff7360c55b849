"""The command `edits` and its commands. Begin with `group`."""
