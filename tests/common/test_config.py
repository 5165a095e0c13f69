"""Settings: defaults, file and environment, and the text that each mistake earns."""

import msgspec
import pytest

from common import config
from common.config import Settings
from common.errors import ConfigError


def _load(tmp_path, text="", **environ):
    file = tmp_path / "minitrue.toml"
    file.write_text(text)
    return config.load(file, environ)


def _error(tmp_path, text="", **environ) -> str:
    with pytest.raises(ConfigError) as caught:
        _load(tmp_path, text, **environ)
    message = str(caught.value)
    assert "\n" not in message
    return message.replace(str(tmp_path / "minitrue.toml"), "FILE")


def test_an_empty_file_means_the_defaults(tmp_path):
    settings = _load(tmp_path)
    assert msgspec.structs.replace(settings, file=Settings().file) == Settings()


def test_file_and_environment_are_laid_over_the_defaults(tmp_path):
    settings = _load(
        tmp_path,
        '[query]\nport = 9000\ntimeout_s = 3\n[mqtt]\nsubscriptions = [{filter = "a/#"}, {filter = "b", qos = 0}]',
        MINITRUE__QUERY__PORT="9001",
        MINITRUE__MQTT__USERNAME="12",
        MINITRUE__LOG__FORMAT="json",
        MINITRUE_MODE="all",
    )
    assert (settings.query.port, settings.query.timeout_s) == (9001, 3.0)
    assert [(each.filter, each.qos) for each in settings.mqtt.subscriptions] == [("a/#", 1), ("b", 0)]
    assert (settings.mqtt.username, settings.log.format) == ("12", "json")


def test_a_list_in_the_environment_is_toml(tmp_path):
    settings = _load(tmp_path, MINITRUE__MQTT__SUBSCRIPTIONS='[{filter = "x/+", qos = 0}]')
    assert settings.mqtt.subscriptions == [config.Subscription("x/+", 0)]


def test_minitrue_config_names_the_file(tmp_path):
    file = tmp_path / "other.toml"
    file.write_text("[query]\nport = 9100")
    assert config.load(environ={"MINITRUE_CONFIG": str(file)}).query.port == 9100


@pytest.mark.parametrize(
    "text",
    [
        '[query]\nhost = "0.0.0.0"\ntokens_file = "t"\nplain_http = true',
        '[query]\nhost = "10.0.0.1"\ntokens_file = "t"\ncert_file = "c"\nkey_file = "k"',
        '[bridge]\nack_endpoint = "tcp://10.0.0.1:*"\n[bus]\nkey_file = "k"',
        '[bridge]\nack_endpoint = "tcp://*:5"\nack_advertised = "tcp://10.0.0.1:5"\n[bus]\nkey_file = "k"',
    ],
)
def test_what_is_locked_may_leave_loopback(tmp_path, text):
    assert _load(tmp_path, text)


def test_relative_paths_are_relative_to_the_file(tmp_path):
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "minitrue.toml").write_text('[paths]\ndata = "../elsewhere"')
    settings = config.load(tmp_path / "conf" / "minitrue.toml", {})
    assert settings.data_dir == tmp_path / "elsewhere"
    assert settings.path("/absolute") == settings.path("/absolute").absolute()


MISTAKES = [
    ("[mqtt]\nkeepalive = 3", "FILE: mqtt.keepalive = 3: unknown setting; did you mean keepalive_s?"),
    ("[mqt]\nx = 3", "FILE: mqt = {'x': 3}: unknown section; did you mean mqtt?"),
    ("[bridge]\nport = 1", "FILE: bridge.port = 1: unknown setting; did you mean query.port?"),
    ('file = "x"', "FILE: file = 'x': unknown section; "),
    ("query = 1", "FILE: query = 1: want a table of host, port, "),
    ("[query]\nport = 0", "FILE: query.port = 0: want an integer from 1 to 65535"),
    ("[query]\nport = true", "FILE: query.port = true: want an integer from 1 to 65535"),
    ('[query]\nport = "80"', "FILE: query.port = '80': want an integer from 1 to 65535"),
    ("[query]\nport = 80.5", "FILE: query.port = 80.5: want an integer from 1 to 65535"),
    ("[query]\ntimeout_s = 0", "FILE: query.timeout_s = 0: want a number above 0"),
    ("[query]\ntimeout_s = nan", "FILE: query.timeout_s = nan: want a number above 0"),
    ("[query]\ntimeout_s = inf", "FILE: query.timeout_s = inf: want a number above 0"),
    ('[log]\nlevel = "loud"', "FILE: log.level = 'loud': want one of debug, info, warning, error"),
    ("[log]\nlevel = 3", "FILE: log.level = 3: want one of debug, info, warning, error"),
    ("[paths]\ndata = 3", "FILE: paths.data = 3: want text"),
    ('[bridge]\nid = "a b"', "FILE: bridge.id = 'a b': want text matching"),
    ('[bridge]\nid = ".."', "FILE: bridge.id = '..': want text matching"),
    ('[mqtt]\nsubscriptions = "a"', "FILE: mqtt.subscriptions = 'a': want a list of tables"),
    ("[mqtt]\nsubscriptions = [1]", "FILE: mqtt.subscriptions[0] = 1: want a table of filter, qos"),
    ("[[mqtt.subscriptions]]\nqos = 1", "FILE: mqtt.subscriptions[0] = {'qos': 1}: lacks filter: want text of at "),
    (
        '[[mqtt.subscriptions]]\nfilter = "a"\nqos = 2',
        "FILE: mqtt.subscriptions[0].qos = 2: want an integer from 0 to 1",
    ),
    (
        '[[mqtt.subscriptions]]\nfilter = "a"\nqus = 1',
        "FILE: mqtt.subscriptions[0].qus = 1: unknown setting; did you mean qos?",
    ),
    ("[mqtt", "FILE: not a TOML file: "),
    ('[mqtt]\nurl = "http://h"', "FILE: mqtt.url = 'http://h': want mqtt://HOST:PORT"),
    ('[mqtt]\nurl = "mqtt://"', "FILE: mqtt.url = 'mqtt://': want mqtt://HOST:PORT"),
    ('[mqtt]\nurl = "mqtt://h:99999"', "FILE: mqtt.url = 'mqtt://h:99999': want mqtt://HOST:PORT"),
    ('[mqtt]\nurl = "mqtt://h:1/topic"', "FILE: mqtt.url = 'mqtt://h:1/topic': want mqtt://HOST:PORT"),
    ('[mqtt]\nca_file = "ca.pem"', "FILE: mqtt.ca_file = 'ca.pem': is for TLS, but mqtt.url = 'mqtt://"),
    (
        '[mqtt]\nurl = "mqtts://h"\ncert_file = "c"',
        "FILE: mqtt.cert_file = 'c': belongs together with mqtt.key_file = ''; want both or neither",
    ),
    ('[mqtt]\npassword = "secret"', "FILE: mqtt.password = (hidden): needs mqtt.username"),
    ("[mqtt]\npassword = 5", "FILE: mqtt.password = (hidden): want text"),
    ("[mqtt]\nreconnect_min_s = 20", "FILE: mqtt.reconnect_min_s = 20.0: want at most mqtt.reconnect_max_s = 15.0"),
    (
        '[mqtt]\nbroker = "embedded"\nshare_group = "g"',
        "FILE: mqtt.share_group = 'g': the embedded broker shares nothing; want another mqtt.broker, or one bridge",
    ),
    ('[mqtt]\nshare_group = "a/b"', "FILE: mqtt.share_group = 'a/b': want text matching ^[^/+#]{0,64}$"),
    ('[cluster]\nring_store = "etcd://h"', "FILE: cluster.ring_store = 'etcd://h': want file:PATH"),
    ('[query]\nhost = "0.0.0.0"', "FILE: query.host = '0.0.0.0': want a loopback address"),
    (
        '[query]\nhost = "0.0.0.0"\ntokens_file = "t"',
        "FILE: query.host = '0.0.0.0': want a loopback address (127.0.0.1, ::1, localhost), or TLS: query.cert_file",
    ),
    (
        '[query]\nhost = "0.0.0.0"\nplain_http = true',
        "FILE: query.host = '0.0.0.0': want a loopback address (127.0.0.1, ::1, localhost), or tokens that requests",
    ),
    ('[query]\ncert_file = "c"', "FILE: query.cert_file = 'c': belongs together with query.key_file = ''; want both"),
    ("[query]\nplain_http = 1", "FILE: query.plain_http = 1: want true or false"),
    (
        '[bridge]\nack_endpoint = "tcp://*:5"\n[bus]\nkey_file = "k"',
        "FILE: bridge.ack_endpoint = 'tcp://*:5': is on all interfaces: bridge.ack_advertised must say which one",
    ),
    ('[query]\nhost = "example.org"', "FILE: query.host = 'example.org': want a loopback address"),
    ('[bridge]\nack_endpoint = "tcp://*:5"', "FILE: bridge.ack_endpoint = 'tcp://*:5': want a loopback address"),
    ('[bridge]\nack_advertised = "tcp://127.0.0.1:*"', "FILE: bridge.ack_advertised = 'tcp://127.0.0.1:*': want tcp"),
    ('[bridge]\nack_endpoint = "ipc://x"', "FILE: bridge.ack_endpoint = 'ipc://x': want tcp://127.0.0.1:PORT"),
    ('[bridge]\nack_endpoint = "tcp://[::1]:0"', "FILE: bridge.ack_endpoint = 'tcp://[::1]:0': want tcp://127.0.0.1:"),
]


@pytest.mark.parametrize("part", ["head_bytes = 200_000_000", "cache_bytes = 400_000_000", "max_series = 2_000_000"])
def test_storage_memory_that_does_not_hold_its_parts_is_refused_with_what_it_wants(tmp_path, part):
    message = _error(tmp_path, f"[storage]\n{part}")
    assert message.startswith("FILE: storage.memory_bytes = 1073741824: want at least 1")
    wanted = int(message.split("at least ")[1].split(":")[0])
    path = tmp_path / "enough.toml"
    path.write_text(f"[storage]\n{part}\nmemory_bytes = {wanted}")
    assert config.load(path, {}).storage.memory_bytes == wanted


@pytest.mark.parametrize(("text", "message"), MISTAKES)
def test_a_mistake_in_the_file_is_named_with_key_value_and_what_is_allowed(tmp_path, text, message):
    assert _error(tmp_path, text).startswith(message)


@pytest.mark.parametrize(
    ("variable", "text", "message"),
    [
        ("QUERY__PORT", "0", "MINITRUE__QUERY__PORT: query.port = 0: want an integer from 1 to 65535"),
        ("QUERY__PORT", "x", "MINITRUE__QUERY__PORT = 'x': want an integer from 1 to 65535"),
        ("QUERY__PORT", "1\n[x]", "MINITRUE__QUERY__PORT = '1\\n[x]': want an integer from 1 to 65535"),
        ("QUERY__PORT", "", "MINITRUE__QUERY__PORT = '': want an integer from 1 to 65535"),
        ("LOG__LEVEL", "loud", "MINITRUE__LOG__LEVEL: log.level = 'loud': want one of debug, info, warning, error"),
        ("QUERY__PROT", "1", "MINITRUE__QUERY__PROT = '1': unknown setting; did you mean MINITRUE__QUERY__PORT?"),
        ("query__port", "1", "MINITRUE__query__port = '1': unknown setting; did you mean MINITRUE__QUERY__PORT?"),
        ("QUERY", "1", "MINITRUE__QUERY = '1': unknown setting; "),
        ("QUERY__HOST", "10.0.0.1", "MINITRUE__QUERY__HOST: query.host = '10.0.0.1': want a loopback address"),
        ("MQTT__SUBSCRIPTIONS", "sensors/#", "MINITRUE__MQTT__SUBSCRIPTIONS = 'sensors/#': want a list of tables"),
        ("MQTT__PASSWORD", "secret", "MINITRUE__MQTT__PASSWORD: mqtt.password = (hidden): needs mqtt.username"),
    ],
)
def test_a_mistake_in_the_environment_is_named_with_its_variable(tmp_path, variable, text, message):
    assert _error(tmp_path, **{f"MINITRUE__{variable}": text}).startswith(message)


def test_an_override_repairs_a_mistake_in_the_file(tmp_path):
    assert _load(tmp_path, "[query]\nport = 0", MINITRUE__QUERY__PORT="80").query.port == 80


def test_a_file_that_is_missing_or_not_text_is_said(tmp_path):
    with pytest.raises(ConfigError, match=r"gone\.toml: cannot read the configuration: No such file"):
        config.load(tmp_path / "gone.toml", {})
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"binary\.toml: not a TOML file"):
        config.load(tmp_path / "binary.toml", {})


@pytest.mark.parametrize("endpoint", ["tcp://127.0.0.1:5710", "tcp://[::1]:5710", "localhost", "127.8.0.1"])
def test_loopback_endpoints_pass(endpoint):
    config.require_loopback(endpoint, "x")


@pytest.mark.parametrize("endpoint", ["tcp://10.0.0.1:5710", "tcp://*:5710", "0.0.0.0", "", "tcp://", "::"])
def test_other_endpoints_are_refused_with_what_they_belong_to(endpoint):
    with pytest.raises(ConfigError, match=r"^node ing1 = .*: want a loopback address"):
        config.require_loopback(endpoint, "node ing1")
