"""Where the data comes from: Parquet files, the Kafka topic `departures`, pushes, and the request itself.

File paths are relative and stored in the registry as written: the server resolves them against the directory
it was started with (`larder serve -c DIR`), which is this one or a copy of it. `prepare.py` writes the files.

Environment variables that matter when the repo is applied: `KAFKA_BOOTSTRAP_SERVERS` (default localhost:9092),
`DEPARTURES_TOPIC` (default departures), and `DEPARTURES_STREAM=push` to receive the same raw departures through the
push API where there is no broker.
"""

import os
from datetime import timedelta

from feast import FileSource, KafkaSource, PushSource, RequestSource
from feast.data_format import JsonFormat
from feast.field import Field
from feast.types import Float64, Int64

BOOTSTRAP_SERVERS = os.environ.get("KAFKA_BOOTSTRAP_SERVERS", "localhost:9092")

weather_file = FileSource(
    name="weather_file",
    path="data/weather.parquet",
    timestamp_field="event_timestamp",
    created_timestamp_column="created",
    description="Hourly observations at EWR, JFK and LGA",
)
weather_push = PushSource(
    name="weather_push",
    batch_source=weather_file,
    description="An observation as soon as a station reports it",
)
planes_file = FileSource(
    name="planes_file",
    path="data/planes.parquet",
    timestamp_field="event_timestamp",
    description="The register of planes",
)
departures_file = FileSource(
    name="departures_file",
    path="data/departures.parquet",
    timestamp_field="event_timestamp",
    created_timestamp_column="created",
    description="Every departure of the past, at the time it left",
)

if os.environ.get("DEPARTURES_STREAM", "kafka") == "push":
    departures_stream = PushSource(name="departures", batch_source=departures_file)
else:
    departures_stream = KafkaSource(
        name="departures",
        kafka_bootstrap_servers=BOOTSTRAP_SERVERS,
        topic=os.environ.get("DEPARTURES_TOPIC", "departures"),
        timestamp_field="event_timestamp",
        created_timestamp_column="created",
        watermark_delay_threshold=timedelta(minutes=5),
        message_format=JsonFormat(
            schema_json=(
                "carrier string, origin string, tailnum string, flight bigint, dest string, "
                "dep_delay double, distance double, event_timestamp timestamp, created timestamp"
            )
        ),
        batch_source=departures_file,
        description="Departures as they happen",
    )

flight_request = RequestSource(
    name="flight_request",
    schema=[
        Field(name="distance", dtype=Float64, description="miles to the destination"),
        Field(name="sched_dep_hour", dtype=Int64, description="scheduled hour of departure, local time"),
    ],
    description="What the caller knows about the flight it asks for",
)
