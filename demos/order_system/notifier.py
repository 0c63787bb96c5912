"""A notifier: one of them mails that something was paid, and each of them says what is announced."""

import sys

from postage import messaging, microthreads
from shop_shared import Announcements, News


class Notifier(messaging.MessageProcessor):
    def __init__(self, name):
        fingerprint = messaging.Fingerprint(name, 'shop')
        # One queue for all notifiers, and one for this one alone.
        own = {'name': f'shop-notifier-{fingerprint.pid}-{fingerprint.host}', 'flags': {'exclusive': True}}
        super().__init__(fingerprint, [(News, [('shop-mail', 'order.paid.#')]), (Announcements, [(own, '')])])

    @messaging.MessageHandler('status', 'paid')
    def paid(self, content):
        print('Mail to', content['customer'], 'about', content['item'])

    @messaging.MessageHandler('status', 'closing')
    def closing(self, content):
        print('We are closing:', content['why'])


if __name__ == '__main__':
    scheduler = microthreads.MicroScheduler()
    scheduler.add_microthread(Notifier(sys.argv[1]))
    print('Waiting for messages')
    scheduler.run(grace=5)
