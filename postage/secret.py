"""What must not be seen: passwords, keys, and what they are taken from (a URL, a HUP, the environment).

A traceback may be shown with the local variables of its frames. So a frame of Postage holds such a value only in a
:class:`Secret`, from the first statement of the function that was given it, and reveals it only inside the expression
that needs it. Where that may fail, in code of others, a function of its own catches the error and returns: one that
is raised after that has no context, whose frames would be shown, too.
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar, overload

T = TypeVar('T')


class Secret(Generic[T]):
    """A value that nothing shows. Equal secrets hold equal values.

    It is no ``str`` that hides itself: an f-string, and tools that show variables, would take the text out of one.
    """

    __slots__ = ('_value',)

    def __init__(self, value: T) -> None:
        self._value = value

    @overload
    @classmethod
    def of(cls, value: None) -> None: ...
    @overload
    @classmethod
    def of(cls, value: object) -> Secret[Any]: ...
    @classmethod
    def of(cls, value: Any) -> Any:
        """The value as a secret; ``None``, and what is a secret already, as it is."""
        return value if value is None or isinstance(value, Secret) else cls(value)

    def reveal(self) -> T:
        """The value. Leave it in no variable."""
        return self._value

    def __repr__(self) -> str:
        return '<Secret>'

    def __reduce__(self) -> Any:
        raise TypeError('a secret is not pickled')

    def __copy__(self) -> Secret[T]:
        return self

    def __deepcopy__(self, _: object) -> Secret[T]:
        return self

    def __eq__(self, other: object) -> bool:
        return self._value == other._value if isinstance(other, Secret) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._value)


def revealed(value: Any) -> Any:
    """What a secret holds, and what is none as it is."""
    return value.reveal() if isinstance(value, Secret) else value


def secret_of_file(path: str) -> Secret[str] | str:
    """The first line of a file as a secret, or why it cannot be had; an error about its encoding would quote it."""
    try:
        with open(path, encoding='utf-8') as file:
            found = Secret(file.readline().rstrip('\r\n'))
            return found if found.reveal() else 'its first line is empty'
    except OSError as error:
        return error.strerror or type(error).__name__
    except ValueError:
        return 'it is not UTF-8'
