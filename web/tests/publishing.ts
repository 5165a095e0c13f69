/** Points of the tests' own, published as a device would. */
import { execFileSync } from 'node:child_process';

export interface Sent {
  device_id: string;
  metric_name: string;
  timestamp: number;
  value: number;
  tags?: Record<string, string>;
}

const PER_MESSAGE = 500;
const PROGRAM = `
import json, os, sys
from urllib.parse import urlsplit
import paho.mqtt.publish as mqtt
place = urlsplit(os.environ["MINITRUE_MQTT"])
payloads = json.load(sys.stdin)
mqtt.multiple([{"topic": "sensors/page", "payload": json.dumps(each), "qos": 1} for each in payloads],
              hostname=place.hostname, port=place.port or 1883)
`;

/** Ends when the broker has them all. */
export function publish(points: Sent[]): void {
  const payloads = [];
  for (let at = 0; at < points.length; at += PER_MESSAGE) payloads.push(points.slice(at, at + PER_MESSAGE));
  execFileSync(process.env.MINITRUE_PYTHON ?? 'python3', ['-c', PROGRAM], {
    input: JSON.stringify(payloads), env: process.env, stdio: 'pipe',
  });
}

/** `count` points a second apart, the last one now: values 0, 1, 2, ... */
export function lately(device: string, count: number, metric = 'level'): Sent[] {
  const now = Math.floor(Date.now() / 1000);
  return Array.from({ length: count }, (_, at) => ({
    device_id: device, metric_name: metric, timestamp: now - (count - 1 - at), value: at,
  }));
}
