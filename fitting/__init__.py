"""Commands that create files shipped with the project. Each module documents what it fits and to which data."""
