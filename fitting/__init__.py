"""Commands that create files shipped with the project, each from the data that it documents."""
