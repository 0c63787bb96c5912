"""Messages: plain dictionaries with a little help in making them, and the check of those that come in.

The body of each message is the dictionary that travels::

    {
        'type': 'command',          what it is: command, status, result, or a word of your own
        'name': 'echo',             which command, which status
        'category': 'message',      'message', or 'rpc' where the sender waits for a result
        'version': '2',             of this envelope
        'fingerprint': {…},         which program sends it
        'content': {…},             what it says
        '_reserved': {…},           for Postage
    }
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, Generic, TypeVar

from postage.errors import EncodingError, EnvelopeError, PostageError, RemoteError
from postage.messaging.remote import unpacked
from postage.printable import shown, shown_half_built

VERSION: Final = '2'
CATEGORIES: Final = ('message', 'rpc')

# Stands for parameters that were left out: None is a value that may be sent.
_LEFT_OUT: Final[Any] = object()


class Message:
    """A generic message, of type and name ``'none'``, and the base of all others.

    ``Message(1, 2, k=3)`` has the content ``{'args': (1, 2), 'kwds': {'k': 3}}``; each key only where there is
    something. Messages with equal bodies are equal; all are true but for errors and exceptions. The class attributes
    are what a body begins with: by them a subclass says what its messages are.

    :ivar body: the dictionary that travels, not shared with any other message
    :cvar type: the body's ``type``
    :cvar name: the body's ``name``, where the constructor is not given one
    :cvar category: the body's ``category``
    :cvar boolean_value: whether the message is true
    """

    type: str = 'none'
    name: str = 'none'
    category: str = 'message'
    boolean_value: bool = True

    body: dict[str, Any]

    def __init__(self, /, *args: Any, **kwds: Any) -> None:
        content: dict[str, Any] = {}
        if args:
            content['args'] = args
        if kwds:
            content['kwds'] = kwds
        self.body = _envelope(self.type, self.name, self.category, content)

    def fingerprint(self, fingerprint: Any = None, /, **kwds: Any) -> None:
        """Update the message's fingerprint, by keywords, by one dictionary, or by a ``Fingerprint``.

        :raises TypeError: where the argument is none of these
        """
        if fingerprint is not None:
            is_mapping = type(fingerprint) is dict or isinstance(fingerprint, Mapping)  # the latter takes longer
            fields = fingerprint if is_mapping else _as_dict(fingerprint)
            self.body['fingerprint'].update(fields)
        self.body['fingerprint'].update(kwds)

    def __bool__(self) -> bool:
        return bool(self.boolean_value)

    def __eq__(self, other: object) -> bool:
        return self.body == other.body if isinstance(other, Message) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # it is mutable

    def __str__(self) -> str:
        return str(self.body)

    @shown_half_built
    def __repr__(self) -> str:
        return f'<{type(self).__name__} {self.body}>'


class MessageCommand(Message):
    """Asks a component to do something, and does not wait.

    :param command: the name of the command, which travels as text
    :param parameters: whatever the command needs and the encoder can encode; ``{}`` where left out
    """

    type = 'command'

    def __init__(self, command: Any, parameters: Any = _LEFT_OUT) -> None:
        # Spelled out, as the result below: these are made for each message.
        try:
            name = str(command)
        except Exception:
            raise EncodingError(f'the name of a command must be text, not {shown(command)}') from None
        self.body = {
            'type': self.type,
            'name': name,
            'category': self.category,
            'version': VERSION,
            'fingerprint': {},
            'content': {'parameters': {} if parameters is _LEFT_OUT else parameters},
            '_reserved': {},
        }


class RpcCommand(MessageCommand):
    """Asks a component to do something, and waits for its result. Its parameters are those of any command."""

    category = 'rpc'


class MessageStatus(Message):
    """Tells a status, or that something has happened.

    ``MessageStatus('stored', {'order': 5})`` is handled by ``@MessageHandler('status', 'stored')``, whose handler gets
    ``{'order': 5}``.

    :param status: text becomes the message's name; anything else becomes its name as text, and travels itself
        in ``content['status']``
    :param content: a dictionary that says more
    :raises TypeError: the content is no dictionary
    """

    type = 'status'

    def __init__(self, status: Any, content: Mapping[str, Any] | None = None) -> None:
        if not isinstance(content, Mapping | None):
            raise TypeError(f'the content of a status must be a dictionary, not {_type_name(content)}')
        content = {**({} if isinstance(status, str) else {'status': status}), **(content or {})}
        try:
            name = str(status)
        except Exception:
            raise EncodingError(f'a status must have a text, not {shown(status)}') from None
        self.body = _envelope(self.type, name, self.category, content)


T = TypeVar('T')


class _Read(Generic[T]):
    """An attribute that is read from the body each time; as any attribute of a message, it may be set."""

    def __init__(self, read: Callable[[dict[str, Any]], T]) -> None:
        self._read = read

    def __get__(self, message: Message | None, owner: object) -> T:
        if message is None:
            raise AttributeError('only a result has it, not its class')
        return self._read(message.body)


class MessageResult(Message):
    """The result of a call that succeeded, and the base of those that did not; these are false.

    :param value: the result
    :param message: a word on it
    :cvar result_type: the ``type`` in the content: ``success``, ``error`` or ``exception``
    :ivar value: the result; of an error ``None``, of an exception its name
    :ivar text: the word on it; of an error or an exception what went wrong
    :ivar responder: the fingerprint of what answered, empty where nothing did
    :ivar duration: seconds that its handler took to answer; ``None`` where the responder does not tell
    :ivar failure: the exception where no responder answered: ``errors.TimeoutError`` or ``errors.Unroutable``
    """

    type = 'result'
    result_type: str = 'success'
    failure: PostageError | None = None

    value: _Read[Any] = _Read(lambda body: body['content']['value'])
    text: _Read[Any] = _Read(lambda body: body['content'].get('message', ''))
    responder: _Read[dict[str, Any]] = _Read(
        lambda body: _reserved(body).get('fingerprint') or body.get('fingerprint') or {}
    )
    duration: _Read[float | None] = _Read(lambda body: _reserved(body).get('duration'))

    def __init__(self, value: Any, message: str = '') -> None:
        self.body = {
            'type': self.type,
            'name': self.name,
            'category': self.category,
            'version': VERSION,
            'fingerprint': {},
            'content': {'type': self.result_type, 'value': value, 'message': message},
            '_reserved': {},
        }

    def unwrap(self) -> Any:
        """The value; where the call did not succeed it raises instead. Never blocks.

        :raises errors.RemoteError: the responder answered with an error or an exception
        :raises Exception: that exception itself, where both sides registered it by ``remote_exception``
        :raises errors.TimeoutError: nothing answered in time
        :raises errors.Unroutable: no queue took the request
        """
        if self.failure is not None:
            raise self.failure.again()
        if self.body['content'].get('type') == 'success':
            return self.value
        error = RemoteError(str(self.text), self.value, self.responder)
        own = unpacked(_reserved(self.body).get('exception'))
        if own is not None:
            raise own from error
        raise error


class MessageResultError(MessageResult):
    """The result of a call that ended in an error; false, and its value is ``None``.

    :param message: what went wrong
    """

    result_type = 'error'
    boolean_value = False

    def __init__(self, message: str) -> None:
        super().__init__(None, message)


class MessageResultException(MessageResult):
    """The result of a call in which the other component raised an exception; false.

    :param name: the name of the exception's class, which becomes the value
    :param message: the exception's text
    """

    result_type = 'exception'
    boolean_value = False

    def __init__(self, name: str, message: str = '') -> None:
        super().__init__(name, message)


def _reserved(body: dict[str, Any]) -> Mapping[str, Any]:
    reserved = body.get('_reserved')
    return reserved if isinstance(reserved, dict) else {}


def result_from_body(body: Any) -> MessageResult:
    """Return the result, error or exception that a decoded reply stands for; it keeps the body itself.

    :raises EnvelopeError: where the reply is not a result, naming what is malformed
    """
    envelope = check_envelope(body)
    if envelope['type'] != 'result':
        raise EnvelopeError(f"the type of a reply must be 'result', but is {shown(envelope['type'])}")
    content = envelope['content']
    kind = content.get('type')
    if not isinstance(kind, str) or kind not in _RESULTS:
        found = f'is {shown(kind)}' if 'type' in content else 'is missing'
        raise EnvelopeError(f"the type in a result's content must be 'success', 'error' or 'exception', but {found}")
    if 'value' not in content:
        raise EnvelopeError("the value in a result's content is missing")
    result = _RESULTS[kind].__new__(_RESULTS[kind])
    result.body = envelope
    return result


def check_envelope(body: object) -> dict[str, Any]:
    """Return the decoded body itself where it is a Postage message.

    ``version``, ``fingerprint`` and ``_reserved`` may be missing; what else is in the body does not matter.

    :raises EnvelopeError: where a field is missing or of the wrong type, naming the field, what it is and what
        it should be
    """
    try:  # what Postage itself sends, quicker than field by field
        if (
            type(body) is dict
            and type(body['type']) is str
            and type(body['name']) is str
            and body['category'] in CATEGORIES
            and type(body['content']) is dict
            and type(body['version']) is str
            and type(body['fingerprint']) is dict
            and type(body['_reserved']) is dict
        ):
            return body
    except KeyError:
        pass
    return _check_fields(body)


def _check_fields(body: object) -> dict[str, Any]:
    """As :func:`check_envelope`, field by field."""
    if not isinstance(body, dict):
        raise EnvelopeError(f'a message must be a dictionary, but is {_type_name(body)}')
    for name, required, wanted in _FIELDS:
        if name not in body:
            if required:
                raise EnvelopeError(f'the field {name!r} is missing; it must be {_WORDS[wanted]}')
        elif not isinstance(body[name], wanted):
            raise EnvelopeError(f'the field {name!r} must be {_WORDS[wanted]}, but is {_type_name(body[name])}')
    if body['category'] not in CATEGORIES:
        raise EnvelopeError(f"the field 'category' must be 'message' or 'rpc', but is {shown(body['category'])}")
    return body


_WORDS: Final[Mapping[type, str]] = {str: 'text', dict: 'a dictionary'}

# Name, whether it must be there, type.
_FIELDS: Final = (
    ('type', True, str),
    ('name', True, str),
    ('category', True, str),
    ('content', True, dict),
    ('version', False, str),
    ('fingerprint', False, dict),
    ('_reserved', False, dict),
)

_RESULTS: Final[Mapping[str, type[MessageResult]]] = {
    'success': MessageResult,
    'error': MessageResultError,
    'exception': MessageResultException,
}


def _envelope(type: str, name: str, category: str, content: dict[str, Any]) -> dict[str, Any]:
    return {
        'type': type,
        'name': name,
        'category': category,
        'version': VERSION,
        'fingerprint': {},
        'content': content,
        '_reserved': {},
    }


def _as_dict(fingerprint: Any) -> Mapping[str, Any]:
    as_dict = getattr(fingerprint, 'as_dict', None)
    if as_dict is None:
        raise TypeError(f'a fingerprint must be a dictionary or a Fingerprint, not {_type_name(fingerprint)}')
    fields: Mapping[str, Any] = as_dict()
    return fields


def _type_name(value: object) -> str:
    return 'null' if value is None else type(value).__name__
