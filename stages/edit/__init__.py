"""Editing: directions, their files, and renders of edited codes from stored refinements."""
