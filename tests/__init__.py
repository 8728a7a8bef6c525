"""The tests, in the rooms of the package that they look at; see README.md."""
