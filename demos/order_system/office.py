"""The operator's commands: register NAME, report, announce TEXT, quit."""

import sys

from postage import messaging
from shop_shared import AnnouncementProducer, OrderProducer, Orders, Prices

fingerprint = messaging.Fingerprint('office', 'shop')
command, *words = sys.argv[1:]
text = ' '.join(words)

with OrderProducer(fingerprint) as orders, AnnouncementProducer(fingerprint) as announcements:
    if command == 'register':
        orders.message_register(text)
    elif command == 'report':
        print(orders.rpc_report().body['content']['value'])
    elif command == 'announce':
        announcements.message_closing(text)
    elif command == 'quit':
        orders.message_quit(_eks=[(Prices, 'price'), (Orders, 'order')])
        announcements.message_quit()
    else:
        sys.exit(__doc__)
