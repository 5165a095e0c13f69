"""The embedded broker, for machines without mosquitto."""
