"""What the doctor finds."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Level(enum.Enum):
    """How bad it is."""

    WRONG = 'wrong'  # the broker refuses it, or does something else than the program asks for
    WARNING = 'warning'  # it may: that depends on a setting which a client cannot ask for


@dataclass(frozen=True)
class Finding:
    """One thing that this broker will refuse, drop or time out.

    :ivar rule: which rule it breaks, such as ``transient-queue``; for programs that read
    :ivar about: what it is about, such as ``queue 'jobs'``
    :ivar text: what is wrong with it
    """

    level: Level
    rule: str
    about: str
    text: str

    def as_dict(self) -> dict[str, str]:
        """The same as JSON has it."""
        return {'level': self.level.value, 'rule': self.rule, 'about': self.about, 'text': self.text}


def wrong(rule: str, about: str, text: str) -> Finding:
    """A finding of that level."""
    return Finding(Level.WRONG, rule, about, text)


def warning(rule: str, about: str, text: str) -> Finding:
    """A finding of that level."""
    return Finding(Level.WARNING, rule, about, text)
