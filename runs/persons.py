"""Detection of subjects or images that are of the same person, from several signs together."""

from collections.abc import Sequence


def join_persons(*signs: Sequence[str]) -> tuple[str, ...]:
    """The person behind each subject: two subjects that share a value of any sign are one person.

    Args:
        signs: sequences with one value per subject, such as the person column of a table and a hash of the recording.
            The first sequence gives the names of the people.

    Example:
        >>> join_persons(("a", "b", "c", "d"), ("1", "1", "2", "3"), ("x", "y", "y", "z"))
        ('a', 'a', 'a', 'd')
    """
    person = list(signs[0])
    for values in signs:
        first: dict[str, str] = {}
        for k, value in enumerate(values):
            known, now = first.setdefault(value, person[k]), person[k]
            if known != now:
                older, newer = sorted((known, now), key=person.index)
                person = [older if name == newer else name for name in person]
                first = {key: older if name == newer else name for key, name in first.items()}
    return tuple(person)
