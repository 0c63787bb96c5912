"""The web front: GET /prices/ITEM asks for a price, POST /orders orders."""

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from postage import messaging
from shop_shared import OrderProducer, PriceProducer

fingerprint = messaging.Fingerprint('web', 'shop')
prices, orders = PriceProducer(fingerprint), OrderProducer(fingerprint)


class Shop(BaseHTTPRequestHandler):
    """Each request has a thread of its own; they share the producers."""

    def do_GET(self):
        _, _, item = self.path.rpartition('/')
        answer = prices.rpc_price(item)
        content = answer.body['content']
        self.answer(200, {'price': content['value']}) if answer else self.answer(404, {'error': content['message']})

    def do_POST(self):
        order = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
        receipt = orders.message_order(order['item'], order['customer'])
        try:
            receipt.wait(timeout=5)
        except messaging.PublishError as error:
            self.answer(503, {'error': str(error)})
        else:
            self.answer(202, {'order': receipt.message_id})

    def answer(self, status, content):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header('Content-Type', 'application/json')
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(('127.0.0.1', int(sys.argv[1])), Shop)
print(f'Serving on http://127.0.0.1:{server.server_port}', flush=True)
try:
    server.serve_forever()
except KeyboardInterrupt:
    pass
