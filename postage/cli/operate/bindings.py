"""The bindings that a broker has, by RabbitMQ's management API: AMQP has no way to list them.

https://www.rabbitmq.com/docs/management#http-api
"""

from __future__ import annotations

import base64
import http.client
import json
from collections.abc import Callable
from typing import Any
from urllib.parse import quote, urlsplit

import click

from postage import errors
from postage.amqp.topology import Binding
from postage.printable import shown
from postage.settings import BrokerSettings

MOST = 100_000_000  # bytes of an answer
UNCHECKED = 'bindings are not checked: AMQP cannot list them; --management URL does, such as http://localhost:15672'


class ManagementUrl(click.ParamType[str]):
    """Where the management API is, without a user and a password: those are the broker's."""

    name = 'url'

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if '@' in value:
            self.fail('the URL must have no user and no password: those of the broker are taken', param, ctx)
        try:
            parts = urlsplit(value)
            is_url = parts.scheme in ('http', 'https') and bool(parts.hostname) and (parts.port or 1) > 0
        except ValueError:
            is_url = False
        if not is_url:
            self.fail(f'{shown(value)} is no URL, such as http://localhost:15672', param, ctx)
        return str(value)


def bindings_of(url: str, settings: BrokerSettings, timeout: float) -> list[Binding]:
    """The bindings of all queues in a virtual host. Blocks.

    :param url: of the management API
    :param settings: which virtual host, and who asks
    :param timeout: seconds to wait for it
    :raises errors.BrokerError: it does not tell
    """
    parts = urlsplit(url)
    kinds: dict[str, Callable[..., http.client.HTTPConnection]] = {
        'http': http.client.HTTPConnection,
        'https': http.client.HTTPSConnection,
    }
    connection = kinds[parts.scheme](parts.hostname, parts.port, timeout=timeout)
    path = f'{parts.path.rstrip("/")}/api/bindings/{quote(settings.vhost, safe="")}'
    try:
        connection.request('GET', path, headers=_headers(settings))
        with connection.getresponse() as response:
            answer = response.read(MOST)
        if response.status != 200:
            raise errors.BrokerError(f'{url} tells user {shown(settings.user)} no bindings: {_why(response)}')
        return [
            Binding(each['destination'], each['source'], each['routing_key'], each['arguments'])
            for each in json.loads(answer)
            if each['destination_type'] == 'queue'
        ]
    except (OSError, http.client.HTTPException) as error:
        raise errors.BrokerError(f'{url} does not answer: {error}') from error
    except (ValueError, LookupError, TypeError) as error:
        raise errors.BrokerError(f'{url} is no management API of RabbitMQ: its answer is none of it') from error
    finally:
        connection.close()


def _headers(settings: BrokerSettings) -> dict[str, str]:
    credentials = base64.b64encode(f'{settings.user}:{settings.password.reveal()}'.encode()).decode()
    return {'Authorization': f'Basic {credentials}', 'Accept': 'application/json'}


def _why(response: http.client.HTTPResponse) -> str:
    reasons = {
        401: 'it refused the password, or the user has no tag "monitoring" or "management"',
        404: 'there is no such virtual host, or no API',
    }
    return f'{reasons.get(response.status, response.reason)} ({response.status})'
