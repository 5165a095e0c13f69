"""The publisher's parts: where points come from (sim, serial_lines, replay), and how they reach the broker (link)."""
