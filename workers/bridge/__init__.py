"""The bridge: takes messages from an MQTT broker and acknowledges them when their points are durable."""
