"""A real S3 server (S3Proxy on the file system) on a free loopback port, from the jars that `scripts/setup.sh` gets."""

from __future__ import annotations

import shutil
from pathlib import Path

import requests
from pyarrow import fs

from larder_env.paths import MissingError, jars
from larder_env.process import Process, free_ports
from larder_env.server import HOST

ACCESS, SECRET = "larder-test-access", "larder-test-secret-that-nobody-may-read"
REGION = "us-east-1"
LOGBACK = """<configuration>
  <appender name="out" class="ch.qos.logback.core.ConsoleAppender">
    <encoder><pattern>%msg%n</pattern></encoder>
  </appender>
  <root level="WARN"><appender-ref ref="out"/></root>
</configuration>
"""


class S3:
    """One server with signed requests only; what it holds lies below its directory."""

    def __init__(self, directory: Path) -> None:
        if shutil.which("java") is None:
            raise MissingError("java is not installed: apt-get install default-jre-headless")
        self.directory = directory
        self.port = free_ports(1)[0]
        self.process = Process("s3proxy", directory / "s3.log")

    @property
    def endpoint(self) -> str:
        """As `s3_endpoint_override` has it."""
        return f"http://{HOST}:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """What a server needs to get in."""
        return {"AWS_ACCESS_KEY_ID": ACCESS, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_DEFAULT_REGION": REGION}

    def start(self) -> S3:
        """Start it, and wait until it answers."""
        (self.directory / "objects").mkdir(parents=True, exist_ok=True)
        properties = {
            "s3proxy.endpoint": self.endpoint,
            "s3proxy.authorization": "aws-v2-or-v4",
            "s3proxy.identity": ACCESS,
            "s3proxy.credential": SECRET,
            "jclouds.provider": "filesystem-nio2",
            "jclouds.filesystem.basedir": self.directory / "objects",
        }
        text = "".join(f"{key}={value}\n" for key, value in properties.items())
        (self.directory / "s3.properties").write_text(text)
        (self.directory / "logback.xml").write_text(LOGBACK)
        jvm = ["-Xmx256m", "-XX:+UseSerialGC", f"-Dlogback.configurationFile={self.directory / 'logback.xml'}"]
        command = ["java", *jvm, "-cp", f"{jars('s3')}/*", "org.gaul.s3proxy.Main"]
        self.process.spawn([*command, "--properties", self.directory / "s3.properties"], cwd=self.directory)
        self.process.wait_ready(self.answers, 60)
        return self

    def answers(self) -> bool:
        """Whether it answers right now; it refuses, as nobody signed."""
        try:
            return requests.get(self.endpoint, timeout=2).status_code in (200, 403)
        except requests.RequestException:
            return False

    def client(self) -> fs.S3FileSystem:
        """Pyarrow's client."""
        return fs.S3FileSystem(
            access_key=ACCESS,
            secret_key=SECRET,
            region=REGION,
            endpoint_override=f"{HOST}:{self.port}",
            scheme="http",
            allow_bucket_creation=True,
        )

    def stop(self) -> None:
        """End it."""
        self.process.kill()
