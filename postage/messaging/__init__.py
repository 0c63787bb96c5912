"""The public door of Postage: ``from postage import messaging``."""

from typing import TYPE_CHECKING

from postage import microthreads as microthreads
from postage.errors import (
    AccessRefused,
    AuthenticationFailed,
    BrokerError,
    BrokerUnavailable,
    CertificateRefused,
    ChannelLost,
    Closed,
    ConfigurationError,
    ConnectionLost,
    Deadlock,
    DeclarationMismatch,
    DecodingError,
    EncodingError,
    EnvelopeError,
    HandlerTimeout,
    HandlingUnfinished,
    LetterRefused,
    Nacked,
    NoDelivery,
    NoSuchLetter,
    NotFound,
    OperationRefused,
    PostageError,
    PublishError,
    PublishTimeout,
    RemoteError,
    ResourceLocked,
    SignatureRefused,
    StoreError,
    TimeoutError,
    Unroutable,
    VirtualHostRefused,
)
from postage.messaging.addresses import ControlExchange, control_key
from postage.messaging.calls import RpcFuture
from postage.messaging.consumer import GenericConsumer
from postage.messaging.deadlines import deadline, remaining
from postage.messaging.declarations import quorum, stream, with_dead_letter
from postage.messaging.encoders import Encoder, JsonEncoder
from postage.messaging.exchanges import Exchange
from postage.messaging.fingerprint import Fingerprint
from postage.messaging.gathering import Gathering, Replies
from postage.messaging.handlers import (
    Handler,
    MessageFilter,
    MessageHandler,
    MessageHandlerFullBody,
    Retry,
    RpcHandler,
    Threaded,
    Timeout,
)
from postage.messaging.health import Health, health
from postage.messaging.letters import DeadLetter, DeadLetterStore
from postage.messaging.messages import (
    Message,
    MessageCommand,
    MessageResult,
    MessageResultError,
    MessageResultException,
    MessageStatus,
    RpcCommand,
)
from postage.messaging.outcomes import AckAndRestart, FilterError, RejectMessage
from postage.messaging.processor import MessageProcessor, current_delivery, delivery
from postage.messaging.producer import GenericProducer
from postage.messaging.remote import remote_exception
from postage.program import GONE as _GONE
from postage.program import effective as _effective
from postage.program import global_hup as global_hup

# Settings that a program may set at run time: see postage.settings for what they mean and when they are read.
# Until then all but the last read as what the environment says.
global_vhost: str | None
global_user: str | None
global_password: str | None
debug_mode = False

if not TYPE_CHECKING:  # or every name would be taken for one of this package's

    def __getattr__(name: str) -> str:
        if name in ('global_vhost', 'global_user', 'global_password'):
            return _effective(name)
        instead = f': {_GONE[name]}' if name in _GONE else ''
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}{instead}')


__all__ = [
    'AccessRefused',
    'AckAndRestart',
    'AuthenticationFailed',
    'BrokerError',
    'BrokerUnavailable',
    'CertificateRefused',
    'ChannelLost',
    'Closed',
    'ConfigurationError',
    'ConnectionLost',
    'ControlExchange',
    'DeadLetter',
    'DeadLetterStore',
    'Deadlock',
    'DeclarationMismatch',
    'DecodingError',
    'Encoder',
    'EncodingError',
    'EnvelopeError',
    'Exchange',
    'FilterError',
    'Fingerprint',
    'Gathering',
    'GenericConsumer',
    'GenericProducer',
    'Handler',
    'HandlerTimeout',
    'HandlingUnfinished',
    'Health',
    'JsonEncoder',
    'LetterRefused',
    'Message',
    'MessageCommand',
    'MessageFilter',
    'MessageHandler',
    'MessageHandlerFullBody',
    'MessageProcessor',
    'MessageResult',
    'MessageResultError',
    'MessageResultException',
    'MessageStatus',
    'Nacked',
    'NoDelivery',
    'NoSuchLetter',
    'NotFound',
    'OperationRefused',
    'PostageError',
    'PublishError',
    'PublishTimeout',
    'RejectMessage',
    'RemoteError',
    'Replies',
    'ResourceLocked',
    'Retry',
    'RpcCommand',
    'RpcFuture',
    'RpcHandler',
    'SignatureRefused',
    'StoreError',
    'Threaded',
    'Timeout',
    'TimeoutError',
    'Unroutable',
    'VirtualHostRefused',
    'control_key',
    'current_delivery',
    'deadline',
    'delivery',
    'health',
    'quorum',
    'remaining',
    'remote_exception',
    'stream',
    'with_dead_letter',
]
