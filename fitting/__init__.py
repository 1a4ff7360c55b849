"""Commands that make the files the project ships: each states what it fits and on what."""
