"""The wires: bytes to nouns and back, sockets, HTTP, Kafka. They know nothing of the broker."""
