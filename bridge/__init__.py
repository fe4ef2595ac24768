"""The RabbitMQ bridge: imports hzzray, never the reverse. Its parts arrive with the broker."""
