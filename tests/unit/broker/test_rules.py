"""Which rules a broker follows; what they are is a matter of ``tests/conformance/version_table.py``."""

from __future__ import annotations

from typing import Any

import pika
import pytest

from postage.broker import BrokerServer


def test_the_rules_are_those_of_4_3_unless_others_are_asked_for() -> None:
    for options, version in (({}, '4.3.6'), ({'rules': '3.10'}, '3.10.8')):
        with BrokerServer(**options) as server:
            connection = pika.BlockingConnection(pika.URLParameters(server.url))
            assert connection._impl.server_properties['version'] == version
            connection.close()


@pytest.mark.parametrize(
    ('options', 'text'),
    [
        ({'rules': '5'}, r"rules='5': what is known is '3\.10', '4\.3'"),
        ({'deny': ['odd']}, "'odd' is no deprecated feature: these are 'transient_nonexcl_queues', 'global_qos'"),
        ({'rules': '3.10', 'permit': ['global_qos']}, r"'global_qos' cannot be chosen: RabbitMQ 3\.10 has no"),
        ({'deny': ['global_qos'], 'permit': ['global_qos']}, "'global_qos' is both permitted and denied"),
    ],
)
def test_what_is_unknown_is_an_error_that_names_what_is_known(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        BrokerServer(**options)
