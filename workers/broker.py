"""The broker worker: the MQTT broker of this machine, for those who have none.

Owns <data>/broker. Decides which broker is meant (`choose`), writes mosquitto's configuration and becomes mosquitto
(exec: supervisord's signals and exit codes are then mosquitto's own, and no orphan can be left), or runs the
embedded broker. With an outside broker there is nothing to do, and it waits to be stopped. Never sees a point.
Belongs to the main thread.
"""

import base64
import hashlib
import ipaddress
import os
import shutil
import socket
from pathlib import Path
from typing import Final, Literal
from urllib.parse import urlsplit

import click

from common import config, files, log, process
from common.errors import ConfigError
from workers.embedded import broker as embedded_broker

Kind = Literal["mosquitto", "embedded", "external"]

# Debian installs mosquitto where only root's PATH looks.
EXTRA_PATH: Final = "/usr/sbin:/usr/local/sbin"
# Of PBKDF2-SHA512 in the password file. mosquitto's own tool takes 101; this costs mosquitto 1 ms per connection.
PASSWORD_ROUNDS: Final = 1000
# Seconds between two saves of sessions and queued messages: what a killed mosquitto can lose.
AUTOSAVE_S: Final = 30

CONFIGURATION: Final = """\
# Written by minitrue's broker worker at each start, from conf/minitrue.toml. Changes here are lost.
{user}listener {port} {host}
{access}
# Sessions and queued messages outlive a restart: saved on SIGTERM and every so many seconds.
persistence true
persistence_location {directory}/
autosave_interval {autosave_s}

# While a bridge is away its messages wait here, all of them (the default drops all but 1,000).
max_queued_messages 0
max_queued_bytes 0
# As many unacknowledged messages as there are packet ids (default 20). Not 0, no limit: ids would be used twice.
max_inflight_messages 65535
max_inflight_bytes 0
# Whatever MQTT can carry. A payload that is too long is the bridge's to judge: it keeps it in the dead letter,
# where a limit here would make its sender try again for ever.
max_packet_size 268435455

set_tcp_nodelay true
log_dest stderr
log_type error
log_type warning
log_type notice
log_type information
log_timestamp_format %Y-%m-%dT%H:%M:%S
"""

logger = log.get("broker")


@click.command(context_settings={"token_normalize_func": lambda name: name.replace("_", "-")})
@click.option("--config", "config_file", type=click.Path(), help="Configuration file, instead of conf/minitrue.toml.")
def main(config_file: str | None) -> None:
    """Run this machine's MQTT broker, as mqtt.broker and mqtt.url in the configuration say.

    Exit codes: 0 after a clean stop, 1 when it cannot run (said in one line), 78 when MINITRUE_MODE leaves it out.
    """
    process.run("broker", "ingestion", body, config_file)


def body(settings: config.Settings, stop: process.Stop) -> None:
    """Be the broker until stopped. With mosquitto this process becomes it and does not return.

    Raises ConfigError where the chosen broker is not there or cannot listen at mqtt.url.
    """
    kind = choose(settings.mqtt)
    if kind == "external":
        logger.info("an outside broker is used, nothing to run here", url=settings.mqtt.url)
        stop.wait(None)
        return
    host, port = listen_address(settings.mqtt)
    directory = settings.data_dir / "broker"
    _prepare(directory, host, port)
    if kind == "mosquitto":
        _become_mosquitto(directory, settings.mqtt)
    embedded_broker.serve(settings.mqtt, host, port, directory, stop)


def choose(mqtt: config.Mqtt) -> Kind:
    """Which broker the settings mean on this machine.

    auto: none where mqtt.url names another machine, else mosquitto where it is installed, else the embedded one.
    """
    if mqtt.broker != "auto":
        return mqtt.broker
    if mqtt.url.startswith("mqtts:") or not _is_here(urlsplit(mqtt.url).hostname or ""):
        return "external"
    return "mosquitto" if mosquitto_binary() else "embedded"


def mosquitto_binary() -> str | None:
    """Where mosquitto is installed, or None."""
    return shutil.which("mosquitto", path=os.environ.get("PATH", os.defpath) + ":" + EXTRA_PATH)


def listen_address(mqtt: config.Mqtt) -> tuple[str, int]:
    """Host and port for our own broker. Raises ConfigError for mqtts."""
    url = urlsplit(mqtt.url)
    if url.scheme != "mqtt" or not url.hostname:
        raise ConfigError(
            f"mqtt.url = {mqtt.url!r}: mqtt.broker = {mqtt.broker!r} serves mqtt://HOST:PORT only; "
            'run a broker with TLS yourself and set mqtt.broker = "external"'
        )
    return url.hostname, url.port or 1883


def mosquitto_configuration(directory: Path, mqtt: config.Mqtt) -> str:
    """The text of mosquitto.conf. directory: where it keeps its state and its password file."""
    host, port = listen_address(mqtt)
    access = f"allow_anonymous false\npassword_file {directory}/passwords" if mqtt.username else "allow_anonymous true"
    # Started by root, mosquitto becomes the user mosquitto, who may not reach a data directory of root's.
    user = "user root\n" if os.geteuid() == 0 else ""
    return CONFIGURATION.format(
        user=user, host=host, port=port, access=access, directory=directory, autosave_s=AUTOSAVE_S
    )


def password_line(username: str, password: str, salt: bytes) -> str:
    """A line of mosquitto's password file: PBKDF2-SHA512, as its `$7$` format has it. salt: 12 bytes."""
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, PASSWORD_ROUNDS)
    salt_text, digest_text = (base64.b64encode(part).decode() for part in (salt, digest))
    return f"{username}:$7${PASSWORD_ROUNDS}${salt_text}${digest_text}\n"


def _become_mosquitto(directory: Path, mqtt: config.Mqtt) -> None:
    binary = mosquitto_binary()
    if binary is None:
        raise ConfigError(f'mqtt.broker = "mosquitto": no mosquitto in PATH, nor in {EXTRA_PATH.replace(":", ", ")}')
    if ":" in mqtt.username:
        raise ConfigError(f"mqtt.username = {mqtt.username!r}: mosquitto's password file cannot hold a colon")
    if mqtt.username:
        line = password_line(mqtt.username, mqtt.password, os.urandom(12))
        files.replace_file(directory / "passwords", [line.encode()], mode=0o600)
    configuration = directory / "mosquitto.conf"
    files.replace_file(configuration, [mosquitto_configuration(directory, mqtt).encode()])
    logger.info("becoming mosquitto", binary=binary, configuration=str(configuration))
    os.execv(binary, [binary, "-c", str(configuration)])


def _prepare(directory: Path, host: str, port: int) -> None:
    """The directory is there and can be written, the port is free; else ConfigError in words for people."""
    try:
        files.make_directory(directory)
    except OSError as error:
        raise ConfigError(f"{directory} cannot be made: {error.strerror}") from error
    if not os.access(directory, os.W_OK | os.X_OK):
        raise ConfigError(f"{directory} cannot be written by this user")
    try:
        address = _probe(host, port)
    except OSError as error:
        raise ConfigError(f"mqtt.url: cannot listen at {host}:{port}: {error.strerror}") from error
    if not ipaddress.ip_address(address).is_loopback:
        logger.info("the broker listens beyond this machine", address=address, port=port)


def _is_here(host: str) -> bool:
    try:
        _probe(host, 0)
    except OSError:  # a name that does not resolve is not ours either
        return False
    return True


def _probe(host: str, port: int) -> str:
    """Listen at an address for a moment; the IP address. Raises OSError where that cannot be done."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as brokers do: a restart need not wait
        probe.bind(address)
        probe.listen(1)
    return str(address[0])


if __name__ == "__main__":
    main()
