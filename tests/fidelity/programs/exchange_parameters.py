"""``parameters`` of an exchange, on the class and an instance, may be changed item by item before it is declared."""

from postage import messaging
from stage import FINGERPRINT, note


class First(messaging.Exchange):
    name = 'first'
    exchange_type = 'topic'
    durable = False


class Second(First):
    name = 'second'
    auto_delete = True


note(First.parameters, Second.parameters, First().parameters)
First.parameters['durable'] = True
First.parameters['arguments'] = {'x-any': 1}
note(First.parameters)
Sending = type('Sending', (messaging.GenericProducer,), {'eks': [(First, 'key')]})
producer = Sending(FINGERPRINT)
checked = producer.channel.exchange_declare('first', exchange_type='topic', durable=True, arguments={'x-any': 1})
note(type(checked.method).__name__)
