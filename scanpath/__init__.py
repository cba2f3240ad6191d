"""Scanpaths: in which order a person looks at the objects of a scene."""
