"""A subclass defines a method of the same name as its parent's handler.

Better: it is called in place of the parent's, decorated again or not; both were, or the parent's alone.
"""

from postage import messaging
from stage import Processor, handle, note

seen = []


class Parent(Processor):
    @messaging.MessageHandler('command', 'echo')
    def msg_echo(self, content):
        seen.append('parent')

    @messaging.MessageHandler('command', 'other')
    def msg_other(self, content):
        seen.append('parent')


class Child(Parent):
    def msg_echo(self, content):
        seen.append('child')

    @messaging.MessageHandler('command', 'other')
    def msg_other(self, content):
        seen.append('other child')


handle(Child, lambda producer: producer.message_echo(), lambda producer: producer.message_other())
note(seen)  # ["child", "other child"]
