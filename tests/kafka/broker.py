"""A real Apache Kafka broker on loopback: one process, KRaft, from its Maven artifacts.

    python -m tests.kafka.broker [directory]

starts one, prints its address, and stops it at Ctrl-C. Tests kill and restart theirs on the same data and ports.
"""

from __future__ import annotations

import base64
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Self

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
POM = HERE / "pom.xml"
STARTING_S_MAX = 90.0
ANSWER_S = 1.0

LOGGING = """
appenders=file
appender.file.type=File
appender.file.name=FILE
appender.file.fileName=%s
appender.file.layout.type=PatternLayout
appender.file.layout.pattern=[%%d] %%p %%m (%%c)%%n
rootLogger.level=INFO
rootLogger.appenderRefs=file
rootLogger.appenderRef.file.ref=FILE
"""


class BrokerMissingError(RuntimeError):
    """There is no broker on this machine, and none can be fetched."""


def libraries() -> Path:
    """Give the directory of the broker's jars; fetched by Maven once, into the cache.

    Units: some 45 MB; seconds where Maven's repository is near.
    """
    cache = Path(os.environ["XDG_CACHE_HOME"]) if os.environ.get("XDG_CACHE_HOME") else ROOT / "var" / "cache"
    place = cache / "kafka-4.1.1"
    if place.is_dir():
        return place
    for program in ("java", "mvn"):
        if shutil.which(program) is None:
            raise BrokerMissingError(f"a Kafka broker needs Java 17 and Maven; there is no {program} here")
    place.parent.mkdir(parents=True, exist_ok=True)
    fetched = Path(tempfile.mkdtemp(prefix="kafka-", dir=place.parent))
    # Maven writes beside its pom; it gets a copy, so that the tree stays clean.
    shutil.copy(POM, fetched / "pom.xml")
    words = ["mvn", "-q", "-B", "-f", str(fetched / "pom.xml"), "dependency:copy-dependencies"]
    done = subprocess.run(
        [*words, f"-DoutputDirectory={fetched / 'libs'}"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        shutil.rmtree(fetched)
        raise BrokerMissingError(f"Maven could not fetch the broker: {done.stdout[-2_000:]}{done.stderr}")
    with suppress(OSError):  # another run was as fast
        (fetched / "libs").rename(place)
    shutil.rmtree(fetched)
    return place


def free_ports(count: int) -> list[int]:
    """Find TCP ports of loopback that nobody listens on."""
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


class Broker:
    """A broker with its data in a directory; it can die and come back."""

    def __init__(self, place: Path) -> None:
        if shutil.which("java") is None:
            raise BrokerMissingError("a Kafka broker needs Java 17; there is no java here")
        self.place = place
        self._libs = libraries()
        self._port, self._controller = free_ports(2)
        self.bootstrap = f"127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None
        self._configure()

    @property
    def log_file(self) -> Path:
        return self.place / "broker.log"

    def _configure(self) -> None:
        (self.place / "log4j2.properties").write_text(LOGGING % self.log_file)
        settings = {
            "process.roles": "broker,controller",
            "node.id": 1,
            "controller.quorum.voters": f"1@127.0.0.1:{self._controller}",
            "listeners": f"PLAINTEXT://127.0.0.1:{self._port},CONTROLLER://127.0.0.1:{self._controller}",
            "controller.listener.names": "CONTROLLER",
            "log.dirs": self.place / "data",
            "offsets.topic.replication.factor": 1,
            "offsets.topic.num.partitions": 4,
            "transaction.state.log.replication.factor": 1,
            "transaction.state.log.min.isr": 1,
            "transaction.state.log.num.partitions": 4,
            "share.coordinator.state.topic.replication.factor": 1,
            "share.coordinator.state.topic.min.isr": 1,
            # What is not asked for by name is not there: a topic with wrong settings would be worse than none.
            "auto.create.topics.enable": "false",
            "group.initial.rebalance.delay.ms": 0,
            # After kill -9 the controller waits this long for the dead one before it lets the new one in.
            "broker.session.timeout.ms": 2_000,
            "broker.heartbeat.interval.ms": 500,
            # A relay that died without a word is forgotten soon, if no other takes its place.
            "transaction.abort.timed.out.transaction.cleanup.interval.ms": 1_000,
        }
        path = self.place / "server.properties"
        path.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode().replace("-", "A")
        self._java("kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(path))

    def _words(self, *arguments: str) -> list[str]:
        logging = f"-Dlog4j2.configurationFile={self.place / 'log4j2.properties'}"
        small = ["-Xmx512m", "-XX:+UseSerialGC", "-Xshare:auto", "-Djava.awt.headless=true"]
        return ["java", *small, logging, "-cp", f"{self._libs}/*", *arguments]

    def _java(self, *arguments: str) -> None:
        done = subprocess.run(self._words(*arguments), capture_output=True, text=True, check=False)
        if done.returncode:
            raise BrokerMissingError(f"{arguments[0]} failed: {done.stdout[-2_000:]}{done.stderr[-2_000:]}")

    def start(self) -> Self:
        """Start the process and wait until it answers."""
        out = (self.place / "broker.out").open("ab")
        with out:
            self._process = subprocess.Popen(
                self._words("kafka.Kafka", str(self.place / "server.properties")),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                # Ctrl-C is for whoever started this; the broker is stopped in order.
                start_new_session=True,
            )
        until = time.monotonic() + STARTING_S_MAX
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the broker did not start: {self.tail()}")
        return self

    def _answers(self) -> bool:
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", self._port), ANSWER_S).close()
            asker = AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0})
            with suppress(KafkaException):
                return bool(asker.list_topics(timeout=ANSWER_S).brokers)
        time.sleep(0.1)
        return False

    def tail(self) -> str:
        """Give the end of what the broker wrote about itself."""
        paths = [self.place / "broker.out", self.log_file]
        return "\n".join(p.read_text(errors="replace")[-3_000:] for p in paths if p.exists())

    def kill(self) -> None:
        """Kill it as a power cut would."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Stop it in order."""
        self._end(signal.SIGTERM)

    def _end(self, how: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(how)
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None


def main(arguments: list[str]) -> int:
    """Run a broker until Ctrl-C."""
    with tempfile.TemporaryDirectory(prefix="soma-kafka-") as fresh:
        place = Path(arguments[0] if arguments else fresh).resolve()
        place.mkdir(parents=True, exist_ok=True)
        print("kafka: starting a broker (the first time it is fetched, 45 MB)", file=sys.stderr, flush=True)
        broker = Broker(place).start()
        print(f"SOMA_KAFKA_BOOTSTRAP_SERVERS={broker.bootstrap}", flush=True)
        print(f"kafka: its log is {broker.log_file}; Ctrl-C stops it", file=sys.stderr, flush=True)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with suppress(KeyboardInterrupt):
            signal.pause()
        broker.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
