"""Encoders may be called on the class and on an instance."""

from postage import messaging
from stage import note

for encoder in (messaging.JsonEncoder, messaging.JsonEncoder()):
    note(encoder.decode(encoder.encode({'a': [1, 'ü', None, True, 1.5]})), encoder.content_type)
for encoder in (messaging.Encoder, messaging.Encoder()):
    note(encoder.encode(('any', 'thing')), encoder.decode('text'), encoder.content_type)
