"""Handlers: the decorators that name them, the filters before them, and the table that finds them."""

from __future__ import annotations

import builtins
import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any, NamedTuple, TypeVar

from postage import errors
from postage.messaging.counting import HandlerFigures
from postage.messaging.handler_checks import check_alone, check_filter, check_parameters, check_type
from postage.messaging.messages import CATEGORIES
from postage.messaging.outcomes import CONTROL_FLOW, FilterError
from postage.printable import class_of, shown, text_of

Target = TypeVar('Target', bound=Callable[..., Any])

_HANDLERS = '_postage_handlers'
_FILTERS = '_postage_filters'
_TIMEOUTS = '_postage_timeouts'
_THREADED = '_postage_threaded'
_RETRIES = '_postage_retries'
_BESIDE = {_FILTERS: 'MessageFilter', _TIMEOUTS: 'Timeout', _THREADED: 'Threaded', _RETRIES: 'Retry'}

DELAY_MAX = 40 * 24 * 3600.0  # seconds; a queue's TTL and expiry are 32-bit numbers of milliseconds


class HandlerData(NamedTuple):
    """Which messages a handler takes, and what of them it gets."""

    category: str
    type: str
    name: str | None
    body_key: str | None


class MessageHandler:
    """``handler(self, content)`` for messages of a type and name; decorates methods and :class:`Handler` classes.

    :param type: the type of the messages it takes, such as ``'command'``
    :param name: their name; by default every name of that type that no named handler takes
    :ivar handler_data: category, type and name of the messages, and the key of their body that the handler gets,
        ``None`` for the whole body. A subclass may set it itself in place of calling this constructor.
    """

    _category = 'message'
    _body_key: str | None = 'content'

    def __init__(self, type: str, name: str | None = None) -> None:
        self.handler_data: tuple[str, str, str | None, str | None] = (self._category, type, name, self._body_key)
        _checked(self)

    def __call__(self, target: Target) -> Target:
        return _mark(target, _HANDLERS, _checked(self), self.__class__.__name__)


def _checked(decorator: MessageHandler) -> HandlerData:
    """The data of a decorator, which a subclass may have set, or a clear error."""
    label = type(decorator).__name__
    data = getattr(decorator, 'handler_data', None)
    if not isinstance(data, tuple) or len(data) != 4:
        shape = '(category, type, name, body key)'
        raise errors.ConfigurationError(f'@{label} must have handler_data as {shape}, not {shown(data)}')
    checked = HandlerData(*data)
    if checked.category not in CATEGORIES:
        raise errors.ConfigurationError(f"@{label}: a category is 'message' or 'rpc', not {shown(checked.category)}")
    if not isinstance(checked.type, str):
        raise errors.ConfigurationError(f"@{label} needs a message type, as in @{label}('command', 'echo')")
    if checked.name is not None and not isinstance(checked.name, str):
        raise errors.ConfigurationError(f'@{label}: the name of a message must be text, not {shown(checked.name)}')
    return checked


class MessageHandlerFullBody(MessageHandler):
    """``handler(self, body)`` for messages of a type and name: the whole body, fingerprint included."""

    _body_key = None


class RpcHandler(MessageHandler):
    """``handler(self, content, reply_func)`` for RPC requests of a type and name.

    ``reply_func(message)`` answers, now or later, with a ``MessageResult`` or one of its kin; a plain value is
    wrapped in one. A handler that has not called it when it returns a value other than ``None`` answers with that.
    """

    _category = 'rpc'


class MessageFilter:
    """Passes messages through ``callable(data, *args, **kwds)`` before the handler it decorates.

    The callable gets a copy of what the handler would get, and returns what the handler gets instead. Any exception
    from it drops the message for that handler alone. Of several filters the one nearest to the function is first.

    :raises errors.ConfigurationError: it is no callable, or it is the handler itself
    """

    def __init__(self, callable: Callable[..., Any], *args: Any, **kwds: Any) -> None:
        if not builtins.callable(callable) or getattr(callable, _HANDLERS, None):
            raise errors.ConfigurationError(
                f'@MessageFilter needs a callable, as in @MessageFilter(convert, 7), not {shown(callable)}'
            )
        self.callable = callable
        self.args = args
        self.kwds = kwds

    def __call__(self, target: Target) -> Target:
        return _mark(target, _FILTERS, self, 'MessageFilter')


class Timeout:
    """Closes the handler it decorates after that many seconds; the message counts as failed then.

    A generator or a coroutine is closed; a plain function, or one in a thread, cannot be stopped, and the log says so.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = check_timeout('@Timeout', seconds)

    def __call__(self, target: Target) -> Target:
        return _mark(target, _TIMEOUTS, self, 'Timeout')


def Threaded(target: Target) -> Target:  # noqa: N802 - it reads like the decorators beside it
    """Runs the handler it decorates in one of the scheduler's threads, for functions that block."""
    return _mark(target, _THREADED, True, 'Threaded')


class Retry:
    """Has a message handled again when the handler it decorates raises one of these exceptions.

    The message comes back after each of the delays in turn, counted across processes and restarts; when the handler
    raises after the last one it is dead. An RPC is answered after its last attempt. All handlers of the message run
    again. ``RejectMessage``, ``FilterError``, ``AckAndRestart`` and ``ExitScheduler`` are never tried again.

    Of several ``Retry`` on one handler the uppermost that names the exception counts.

    :param exceptions: classes of exceptions; every ``Exception``, where none is named
    :param delays: seconds before each further attempt
    :param jitter: by which part of itself a delay may be shorter or longer, 0 to 1, so that what failed together does
        not come back all at once
    :raises errors.ConfigurationError: an argument has the wrong type or value
    """

    def __init__(self, *exceptions: type[Exception], delays: Sequence[float] = (1, 5, 30), jitter: float = 0.2) -> None:
        for exception in exceptions:
            if not isinstance(exception, type) or not issubclass(exception, Exception):
                raise errors.ConfigurationError(f'@Retry takes classes of exceptions, not {shown(exception)}')
            if issubclass(exception, CONTROL_FLOW):
                raise errors.ConfigurationError(f'@Retry: {exception.__name__} is no failure and is never tried again')
        self.exceptions = exceptions or (Exception,)
        self.jitter = _number(jitter, 'jitter must be a number from 0 to 1', 1)
        if isinstance(delays, str) or not isinstance(delays, Sequence) or not delays:
            raise errors.ConfigurationError(
                f'@Retry: delays must be a list of seconds and not empty, not {shown(delays)}'
            )
        rule, limit = 'a delay must be a number of seconds, 40 days at most', DELAY_MAX / (1 + self.jitter)
        self.delays = tuple(_number(delay, rule, limit) for delay in delays)

    def __call__(self, target: Target) -> Target:
        return _mark(target, _RETRIES, self, 'Retry')


def _number(value: Any, rule: str, highest: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= highest:
        raise errors.ConfigurationError(f'@Retry: {rule}, not {shown(value)}')
    return float(value)


def check_timeout(where: str, seconds: Any) -> float:
    """A time-out as given by the user, or a clear error."""
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not seconds > 0:
        raise errors.ConfigurationError(f'{where} must be a number of seconds above 0, not {shown(seconds)}')
    return seconds


class Colour(Enum):
    """How a handler runs: what kind of function it is."""

    PLAIN = 'plain'  # in the scheduler's thread, to its end
    GENERATOR = 'generator'  # as a microthread
    COROUTINE = 'coroutine'  # on the scheduler's asyncio loop
    THREADED = 'threaded'  # in the scheduler's thread pool


class Handler:
    """Base of handlers that are classes, inside a processor: one is made for each message, and :meth:`call` called.

    A class that overrides the constructor alone does its work there.

    :ivar data: what a method in its place would get: the content, or the body
    :ivar reply_func: answers the RPC; ``None`` for other messages
    :ivar processor: the processor it belongs to
    """

    def __init__(self, processor: Any, data: Any, reply_func: Callable[[Any], object] | None = None) -> None:
        self.processor = processor
        self.data = data
        self.reply_func = reply_func

    def call(self) -> Any:
        """Handle the message. To be overridden."""
        raise NotImplementedError(f'{type(self).__name__} must define call(self)')


def _mark(target: Target, attribute: str, mark: object, label: str) -> Target:
    """Put a decorator's mark on its target itself, not on what the target inherits from."""
    if isinstance(target, type) and not issubclass(target, Handler):
        raise errors.ConfigurationError(f'{target.__name__} must derive from messaging.Handler to be a message handler')
    try:
        if isinstance(target, MessageFilter):  # which was written without its arguments
            raise TypeError
        marks = vars(target).get(attribute, [])
        setattr(target, attribute, [mark, *marks])
    except (TypeError, AttributeError):
        raise errors.ConfigurationError(
            f'@{label} decorates methods and Handler classes, not {shown(target)}'
        ) from None
    return target


class Entry:
    """One handler of one processor, with what is done before it is called.

    :ivar data: which messages it takes
    :ivar figures: what is counted of it
    :ivar colour: how it runs
    :ivar timeout: seconds it may take, ``None`` for no limit
    :ivar retries: when its message is to be handled again
    :ivar call: the method, or the :class:`Handler` class
    :ivar is_simple: whether all there is to do is to call it
    """

    def __init__(self, processor: Any, attribute: str, data: HandlerData, marks: Mapping[str, Any]) -> None:
        self.processor = processor
        self.data = data
        self.label = f'{type(processor).__name__}.{attribute}'
        self.figures = HandlerFigures(self.label)
        self.is_rpc = data.category == 'rpc'
        self.body_key = data.body_key
        self.filters: list[MessageFilter] = marks.get(_FILTERS, [])[::-1]  # from the handler outwards
        self.retries: list[Retry] = marks.get(_RETRIES, [])
        timeouts: list[Timeout] = marks.get(_TIMEOUTS, [])
        self.timeout: float | None = timeouts[0].seconds if timeouts else getattr(processor, 'timeout', None)
        self.call = getattr(processor, attribute)
        self.is_class = isinstance(self.call, type)
        if self.is_class and self.call.call is Handler.call and self.call.__init__ is not Handler.__init__:
            self.call = _worked_in_constructor(self.call)
        if not callable(self.call):
            raise errors.ConfigurationError(f'the handler {self.label} is not callable: {shown(self.call)}')
        self.colour = self._colour(bool(marks.get(_THREADED)))
        # Asked for with each message:
        self.is_plain = self.colour is Colour.PLAIN
        self.is_simple = not self.filters and not self.is_class and self.timeout is None

    def _colour(self, threaded: bool) -> Colour:
        function = self.call.call if self.is_class else self.call
        is_generator = inspect.isgeneratorfunction(function)
        is_coroutine = inspect.iscoroutinefunction(function)
        if inspect.isasyncgenfunction(function) or (threaded and (is_generator or is_coroutine)):
            raise errors.ConfigurationError(
                f'the handler {self.label} must be a function, a generator function or an async function'
                + (', and to be @Threaded a plain one' if threaded else '')
            )
        if threaded:
            return Colour.THREADED
        return Colour.GENERATOR if is_generator else Colour.COROUTINE if is_coroutine else Colour.PLAIN

    def check(self) -> None:
        """See that messages can come to it, and that it can be called with them.

        :raises errors.ConfigurationError: it is said why not, and which method it is
        """
        check_type(self.label, self.data.type, self.data.name)
        for each in self.filters:
            check_filter(self.label, each.callable, each.args, each.kwds)
        what = 'content' if self.body_key is not None else 'body'
        decorator = '@RpcHandler' if self.is_rpc else '@MessageHandler' if self.body_key else '@MessageHandlerFullBody'
        if self.is_class:
            check_parameters(self.label, self.call, decorator, 'processor', what, 'reply_func')
            check_parameters(f'{self.label}.call', self.call.call, decorator, 'self')
        elif self.is_rpc:
            check_parameters(self.label, self.call, decorator, what, 'reply_func')
        else:
            check_parameters(self.label, self.call, decorator, what)

    @property
    def is_built_in(self) -> bool:
        """Whether it is one that Postage itself defines, such as that of ``quit``."""
        return str(getattr(self.call, '__module__', '')).partition('.')[0] == __name__.partition('.')[0]

    def __call__(self, body: dict[str, Any], reply_func: Callable[[Any], object] | None) -> Any:
        """Filter a message and call the handler.

        :return: what the handler returns: a result, or the generator or coroutine that it is
        :raises FilterError: where a filter dropped it
        """
        data = body if self.body_key is None else body[self.body_key]
        if self.filters:
            data = self._filtered(data)
        if self.is_class:
            return self.call(self.processor, data, reply_func).call()
        if self.is_rpc:
            return self.call(data, reply_func)
        return self.call(data)

    def _filtered(self, data: Any) -> Any:
        data = copy.deepcopy(data)
        for message_filter in self.filters:
            try:
                data = message_filter.callable(data, *message_filter.args, **message_filter.kwds)
            except Exception as error:
                name = getattr(message_filter.callable, '__name__', repr(message_filter.callable))
                raise FilterError(f'dropped by filter {name}: {class_of(error)}: {text_of(error)}') from error
        return data


def _worked_in_constructor(cls: type[Handler]) -> type[Handler]:
    """A handler class whose work is done once it is made."""
    return type(cls.__name__, (cls,), {'call': _nothing_more})


def _nothing_more(handler: Handler) -> None:
    pass


class HandlerTable:
    """The handlers of one processor: those of its class and of the classes it derives from.

    A method of the same name in a subclass takes the place of its parent's, decorated again or not; ``None`` in its
    place takes it away.
    """

    def __init__(self, processor: object) -> None:
        self._named: dict[tuple[str, str, str], list[Entry]] = {}
        self._default: dict[tuple[str, str], list[Entry]] = {}
        for attribute, marks in _declared(type(processor)).items():
            for data in marks[_HANDLERS]:
                entry = Entry(processor, attribute, data, marks)
                entry.check()
                self._add(data, entry)

    def _add(self, data: HandlerData, entry: Entry) -> None:
        kind = (data.category, data.type)
        if data.name is None:
            entries = self._default.setdefault(kind, [])
        else:
            entries = self._named.setdefault((*kind, data.name), [])
        if entry.is_rpc:
            entries.clear()  # one request, one answer: a subclass's own
        entries.append(entry)

    @property
    def entries(self) -> list[Entry]:
        """All of them."""
        return [entry for entries in (*self._named.values(), *self._default.values()) for entry in entries]

    @property
    def answers(self) -> bool:
        """Whether any of them takes RPC requests."""
        return any(kind[0] == 'rpc' for kind in (*self._named, *self._default))

    def find(self, category: str, type: str, name: str) -> list[Entry]:
        """The handlers of a message, in the order of their definition."""
        entries = self._named.get((category, type, name))
        return entries if entries is not None else self._default.get((category, type), [])


def _declared(cls: type) -> dict[str, Mapping[str, Any]]:
    """The decorators' marks of each handler of a class, by attribute, in the order of their first definition."""
    declared: dict[str, Mapping[str, Any]] = {}
    others: dict[str, tuple[str, Mapping[str, Any]]] = {}
    for ancestor in reversed(cls.__mro__):
        answering: dict[tuple[str, str | None], list[str]] = {}
        for attribute, value in list(vars(ancestor).items()):
            # A class method or a static one has the marks that the function in it was given.
            marks = {**getattr(getattr(value, '__func__', None), '__dict__', {}), **getattr(value, '__dict__', {})}
            if marks.get(_HANDLERS):
                declared[attribute] = marks
                for data in marks[_HANDLERS]:
                    if data.category == 'rpc':
                        answering.setdefault((data.type, data.name), []).append(attribute)
            elif attribute in declared and value is None:
                del declared[attribute]
            elif attribute in declared:  # what it has of its own counts, and of its parent the rest
                declared[attribute] = {**declared[attribute], **marks}
            else:
                others[attribute] = f'{ancestor.__name__}.{attribute}', marks
        check_alone(answering, ancestor.__name__)
    for attribute, (label, beside) in others.items():
        if attribute not in declared:  # as that of a mixin may be, by a class derived from it
            _check_no_handler(label, beside)
    return declared


def _check_no_handler(label: str, marks: Mapping[str, Any]) -> None:
    """See that no handler was forgotten to be marked as one."""
    for mark, decorator in _BESIDE.items():
        if marks.get(mark):
            raise errors.ConfigurationError(
                f'{label} has @{decorator}, but no decorator that says which messages it takes, such as @MessageHandler'
            )
