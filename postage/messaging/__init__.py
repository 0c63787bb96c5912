"""The public door of Postage: ``from postage import messaging``."""

from postage.errors import (
    AccessRefused,
    AuthenticationFailed,
    BrokerError,
    BrokerUnavailable,
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
    Nacked,
    NoSuchLetter,
    NotFound,
    OperationRefused,
    PostageError,
    PublishError,
    PublishTimeout,
    ResourceLocked,
    StoreError,
    TimeoutError,
    Unroutable,
    VirtualHostRefused,
)
from postage.messaging.consumer import GenericConsumer
from postage.messaging.declarations import quorum, stream, with_dead_letter
from postage.messaging.encoders import Encoder, JsonEncoder
from postage.messaging.exchanges import Exchange
from postage.messaging.fingerprint import Fingerprint
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
from postage.messaging.processor import MessageProcessor, current_delivery
from postage.messaging.producer import GenericProducer
from postage.messaging.rpc import RpcFuture

# Settings that a program may set at run time: see postage.settings for what they mean and when they are read.
global_hup = None
global_vhost = None
global_user = None
global_password = None
debug_mode = False

__all__ = [
    'AccessRefused',
    'AckAndRestart',
    'AuthenticationFailed',
    'BrokerError',
    'BrokerUnavailable',
    'ChannelLost',
    'Closed',
    'ConfigurationError',
    'ConnectionLost',
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
    'GenericConsumer',
    'GenericProducer',
    'Handler',
    'HandlerTimeout',
    'HandlingUnfinished',
    'JsonEncoder',
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
    'NoSuchLetter',
    'NotFound',
    'OperationRefused',
    'PostageError',
    'PublishError',
    'PublishTimeout',
    'RejectMessage',
    'ResourceLocked',
    'Retry',
    'RpcCommand',
    'RpcFuture',
    'RpcHandler',
    'StoreError',
    'Threaded',
    'Timeout',
    'TimeoutError',
    'Unroutable',
    'VirtualHostRefused',
    'current_delivery',
    'quorum',
    'stream',
    'with_dead_letter',
]
