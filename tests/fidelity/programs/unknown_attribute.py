"""An attribute that a producer does not have.

Better: an ``AttributeError``, which says what there is; it was ``None``.
"""

from stage import note, producer, raised

note(raised(lambda: producer().mesage_echo))  # "AttributeError"
