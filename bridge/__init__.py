"""The RabbitMQ bridge: imports hzzray, never the reverse."""
