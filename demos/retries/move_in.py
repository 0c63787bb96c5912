"""Tell the post office where Bob lives, and end."""

import post_shared

producer = post_shared.PostProducer()
producer.message_move_in(Bob='Oak Street')
