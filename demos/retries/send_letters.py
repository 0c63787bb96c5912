"""Send a letter to Ann and one to Bob, and end."""

import post_shared

producer = post_shared.PostProducer()
producer.message_letter('Ann')
producer.message_letter('Bob')
