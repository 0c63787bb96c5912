"""Never run, but read by ``make lint``: types come through, and each ``type: ignore`` is a mistake that mypy finds."""

from __future__ import annotations

from postage import messaging, testing
from stock import StockProcessor
from stock_shared import StockProducer


def a_producer_of_a_with_is_of_its_class() -> float:
    with StockProducer() as producer:
        producer.price(4)  # type: ignore[arg-type]
        return producer.price('tea')


def a_consumer_of_a_with_is_of_its_class() -> messaging.GenericConsumer:
    with messaging.GenericConsumer([]) as consumer:
        consumer.no_such_method()  # type: ignore[attr-defined]
        return consumer


def a_component_that_runs_beside_a_test_is_of_its_class() -> StockProcessor:
    with testing.running(StockProcessor) as processor:
        processor.no_such_method()  # type: ignore[attr-defined]
        return processor


def a_delivery_is_there_in_a_handler() -> int:
    headers = messaging.current_delivery().headers  # type: ignore[union-attr]
    return int(messaging.delivery().headers.get('x-postage-attempts', len(headers)))
