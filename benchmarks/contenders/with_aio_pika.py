"""aio-pika."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Coroutine
from typing import Any

import aio_pika
import common
from aio_pika.abc import AbstractIncomingMessage, AbstractRobustConnection


async def connect(options: common.Options) -> AbstractRobustConnection:
    return await aio_pika.connect_robust(
        host=options.host, port=options.port, login='guest', password='guest', virtualhost=options.vhost
    )


async def publish(options: common.Options, measure: common.Measure) -> None:
    """Publish one after the other; with confirms, many tasks wait for theirs at the same time."""
    connection = await connect(options)
    async with connection:
        channel = await connection.channel(publisher_confirms=bool(options.confirms))
        exchange = await channel.get_exchange(common.EXCHANGE)
        body = common.envelope(common.text(options.size))

        async def send(key: str) -> None:
            message = aio_pika.Message(
                common.encode(body), content_type='application/json', delivery_mode=options.delivery_mode
            )
            await exchange.publish(message, key)

        for _ in range(common.WARM_UP):
            await send(common.NOWHERE)
        with measure:
            if options.confirms:
                await at_once(lambda: send(options.queue), options.messages, common.WINDOW)
            else:
                for _ in range(options.messages):
                    await send(options.queue)
                queue = await channel.declare_queue(options.queue, passive=True)
                while (queue.declaration_result.message_count or 0) < options.messages:
                    await asyncio.sleep(0.001)
                    queue = await channel.declare_queue(options.queue, passive=True)


async def at_once(job: Callable[[], Coroutine[Any, Any, None]], times: int, limit: int) -> None:
    """Run a job that often, and up to a limit at the same time."""
    left = iter(range(times))

    async def work() -> None:
        for _ in left:
            await job()

    await asyncio.gather(*(work() for _ in range(min(limit, times))))


async def consume(options: common.Options, measure: common.Measure) -> None:
    """Consume, and acknowledge each message."""
    handled = 0
    done = asyncio.Event()

    def echo(content: Any) -> None:
        nonlocal handled
        handled += 1

    handlers: common.Handlers = {('command', 'echo'): echo}

    async def on_message(message: AbstractIncomingMessage) -> None:
        common.dispatch(handlers, json.loads(message.body))
        await message.ack()
        if handled == options.messages:
            done.set()

    connection = await connect(options)
    async with connection:
        channel = await connection.channel()
        if options.prefetch:
            await channel.set_qos(prefetch_count=options.prefetch)
        queue = await channel.get_queue(options.queue)
        with measure:
            tag = await queue.consume(on_message)
            await done.wait()
            await queue.cancel(tag)


async def call(options: common.Options, measure: common.Measure) -> None:
    """Call a responder over direct reply-to."""
    replies: dict[str, asyncio.Future[bytes]] = {}

    async def on_reply(message: AbstractIncomingMessage) -> None:
        replies.pop(message.correlation_id or '').set_result(message.body)

    connection = await connect(options)
    async with connection:
        channel = await connection.channel(publisher_confirms=False)
        exchange = await channel.get_exchange(common.EXCHANGE)
        body = common.envelope(common.text(options.size, 'rpc'), 'rpc')
        reply_queue = await channel.get_queue('amq.rabbitmq.reply-to')
        await reply_queue.consume(on_reply, no_ack=True)
        sent = 0

        async def call_once() -> None:
            nonlocal sent
            sent += 1
            reply = replies[str(sent)] = asyncio.get_running_loop().create_future()
            message = aio_pika.Message(
                common.encode(body),
                content_type='application/json',
                delivery_mode=options.delivery_mode,
                reply_to=reply_queue.name,
                correlation_id=str(sent),
            )
            await exchange.publish(message, options.queue)
            common.check_result(json.loads(await reply))

        for _ in range(common.WARM_UP_CALLS):
            await call_once()
        with measure:
            if options.in_flight > 1:
                await at_once(call_once, options.messages, options.in_flight)
            else:
                for _ in range(options.messages):
                    began = time.perf_counter()
                    await call_once()
                    measure.latencies.append(time.perf_counter() - began)


async def respond(options: common.Options, measure: common.Measure) -> None:
    """Answer RPCs."""
    answered = 0
    done = asyncio.Event()
    handlers: common.Handlers = {('command', 'echo'): lambda content: common.result(content['parameters'])}

    connection = await connect(options)
    async with connection:
        channel = await connection.channel(publisher_confirms=False)
        queue = await channel.get_queue(options.queue)

        async def on_message(message: AbstractIncomingMessage) -> None:
            nonlocal answered
            reply = common.dispatch(handlers, json.loads(message.body))
            await channel.default_exchange.publish(
                aio_pika.Message(
                    common.encode(reply), content_type='application/json', correlation_id=message.correlation_id
                ),
                message.reply_to or '',
            )
            await message.ack()
            answered += 1
            if answered == options.calls_to_answer:
                done.set()

        tag = await queue.consume(on_message)
        with measure:
            await done.wait()
            await queue.cancel(tag)


def in_a_loop(role: Callable[[common.Options, common.Measure], Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """A role that is a coroutine, as a function."""
    return lambda options, measure: asyncio.run(role(options, measure))


if __name__ == '__main__':
    roles = {'publish': publish, 'consume': consume, 'call': call, 'respond': respond}
    common.main({name: in_a_loop(role) for name, role in roles.items()})
