"""A class has two RPC handlers of one name.

Better: an error names both when the processor is made; the last one answered, and the other was never called.
"""

from postage import messaging
from stage import Processor, note, raised


class Many(Processor):
    @messaging.RpcHandler('command', 'ask')
    def rpc_first(self, content, reply_func):
        reply_func('first')

    @messaging.RpcHandler('command', 'ask')
    def rpc_last(self, content, reply_func):
        reply_func('last')


made = raised(Many, {}, [], None, None)
note(made if isinstance(made, str) else 'made')  # "ConfigurationError"
