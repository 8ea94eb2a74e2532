"""Sixteen bugs, put one by one into a copy of the package, each of which tests have to catch."""
