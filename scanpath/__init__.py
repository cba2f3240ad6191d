"""Scanpaths: models of the order in which a person looks at the objects of a scene."""
