"""Commands that create files shipped with the project. Each says what it fits, and to what."""
