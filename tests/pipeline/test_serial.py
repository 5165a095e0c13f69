"""Lines from a serial port, here a pseudo-terminal, become points that /query finds."""

import os
import pty
import signal
import subprocess
import tty

from tests.pipeline import client
from tools.sandbox_app import Sandbox


def test_lines_of_every_form_are_stored() -> None:
    board, computer = pty.openpty()
    tty.setraw(computer)
    try:
        with Sandbox(nodes=1, broker="embedded") as cluster:
            command = [client.ROOT / "tools" / "publisher", "--serial", os.ttyname(computer), "--baud", "9600"]
            options = ["--device", "board", "--metric", "level", "--url", cluster.mqtt]
            publisher = subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True)
            try:
                assert any("open at 9600 baud" in line for line in publisher.stderr)  # earlier lines are flushed
                for number in range(50):
                    os.write(board, b"tank,%d.25\n" % number)
                os.write(board, b"temperature 21.5\r\n")
                os.write(board, b'{"device_id":"json","metric_name":"m","timestamp":1704067200,"value":-3}\n')
                os.write(board, b"no reading at all\n")
                want = {("tank", "level"): 50, ("board", "temperature"): 1, ("json", "m"): 1}
                client.wait_for_counts(cluster.http, want, timeout_s=60)
            finally:
                publisher.send_signal(signal.SIGINT)
                publisher.communicate(timeout=30)
            _, answer = client.ask(
                cluster.http, device_id="tank", metric_name="level", operation="sum", start_time=0, end_time=0
            )
            assert answer["result"] == sum(number + 0.25 for number in range(50))
    finally:
        os.close(board)
        os.close(computer)
