"""The floors: compiled programs that do the same work with no Python at all."""
