"""Docstrings of this project have a section "Example:"; the parser that makes the pages knows "Examples:"."""

import re

import griffe


class Examples(griffe.Extension):
    """Rename the section, so that the example is shown as code."""

    def on_object(self, *, obj: griffe.Object, loader: griffe.GriffeLoader, **options: object) -> None:
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
