"""Orders: charges the customer, stores the order, and tells the others."""

import sqlite3
import sys
from pathlib import Path

from postage import messaging, microthreads
from postage.dead_letters import SQLiteDeadLetters
from shop_shared import NewsProducer, Orders

TABLES = """
    CREATE TABLE IF NOT EXISTS orders (message_id TEXT PRIMARY KEY, item TEXT, customer TEXT);
    CREATE TABLE IF NOT EXISTS customers (name TEXT PRIMARY KEY);
"""


class OrderProcessor(messaging.MessageProcessor):
    max_deliveries = 5

    def __init__(self, folder):
        self.folder = Path(folder)
        self.dead_letters = SQLiteDeadLetters(self.folder / 'letters.db')
        fingerprint = messaging.Fingerprint('orders', 'shop')
        self.news = NewsProducer(fingerprint)
        super().__init__(fingerprint, [(Orders, [('shop-orders', 'order')])])

    def before_processing(self):
        # In the scheduler's thread, which runs the handlers.
        self.database = sqlite3.connect(self.folder / 'orders.db')
        self.database.executescript(TABLES)

    def after_processing(self):
        self.database.close()

    @messaging.MessageHandler('command', 'register')
    def register(self, content):
        with self.database:
            self.database.execute('INSERT OR IGNORE INTO customers VALUES (?)', [content['parameters']['customer']])
        print('Registered', content['parameters']['customer'])

    @messaging.Retry(ConnectionError, delays=(0.2, 0.5))
    @messaging.MessageHandler('command', 'order')
    def order(self, content):
        order = content['parameters']
        message_id = messaging.delivery().properties.message_id
        if self.select('SELECT 1 FROM orders WHERE message_id = ?', message_id):
            return  # delivered twice
        self.charge(order['customer'])
        with self.database:
            self.database.execute('INSERT INTO orders VALUES (?, ?, ?)', [message_id, order['item'], order['customer']])
        self.news.message_paid(order, _key=f'order.paid.{order["item"]}')
        print(order['customer'], 'has ordered', order['item'])

    def charge(self, customer):
        """The bank: it does not know everybody, and the line to it is bad."""
        if not self.select('SELECT 1 FROM customers WHERE name = ?', customer):
            raise LookupError(f'no customer {customer}')
        if messaging.delivery().headers.get('x-postage-attempts', 0) < 2:
            print('The bank is busy:', customer, 'has to wait')
            raise ConnectionError('the bank is busy')

    @messaging.RpcHandler('command', 'report')
    def report(self, content, reply_func):
        return dict(self.select('SELECT item, COUNT(*) FROM orders GROUP BY item'))

    def select(self, query, *values):
        return self.database.execute(query, values).fetchall()


if __name__ == '__main__':
    scheduler = microthreads.MicroScheduler()
    scheduler.add_microthread(OrderProcessor(sys.argv[1]))
    print('Waiting for messages')
    scheduler.run(grace=5)
