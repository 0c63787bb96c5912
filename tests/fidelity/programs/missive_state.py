"""Missive: the module ``missive.state``; contexts have such a state each."""

from postage import missive
from postage.missive.state import State
from stage import note, raised

state = State()
state.any = 1
note(state.any, hasattr(state, 'none'))
del state.any
note(raised(lambda: state.any))
processor = missive.Processor()


@processor.before_processing
def begin(ctx):
    ctx.state.count = 0


@processor.before_handling
def before(ctx, handling):
    handling.state.number = ctx.state.count


@processor.handle_for(lambda message: True)
def count(message, ctx):
    ctx.processing_ctx.state.count += 1
    note(ctx.state.number, type(ctx.state) is State)
    ctx.ack()


with processor.test_client() as client:
    for data in (b'one', b'two'):
        client.send(missive.RawMessage(data))
    note([message.raw_data.decode() for message in client.acked], client.nacked)
