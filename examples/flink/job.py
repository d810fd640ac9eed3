"""A PyFlink job that pushes features into Larder: payments and their sum per card and minute.

    python job.py --jars flink-sql-connector-kafka-5.0.0-2.2.jar --bootstrap-servers localhost:9092 --topic payments

Messages are JSON: {"card_id": "c1", "amount": 9.5, "ts": "2026-01-01T10:00:00Z"}. A minute is pushed when the watermark
has passed its end. The push is a pandas function over the rows of a bundle: Flink ends a bundle before each checkpoint,
so offsets are committed behind what was pushed; a push that fails fails the job, which Flink starts again from its last
checkpoint.
"""

from __future__ import annotations

import argparse
import pathlib

import pandas as pd
from pyflink.table import DataTypes, EnvironmentSettings, TableEnvironment
from pyflink.table.udf import udf

SOURCE = """
CREATE TABLE payments (
    card_id STRING, amount DOUBLE, ts TIMESTAMP_LTZ(3), WATERMARK FOR ts AS ts - INTERVAL '10' SECOND
) WITH (
    'connector' = 'kafka', 'topic' = '{topic}', 'properties.bootstrap.servers' = '{servers}',
    'properties.group.id' = 'card_minutes',
    'scan.startup.mode' = 'earliest-offset', {bounded}
    'format' = 'json', 'json.timestamp-format.standard' = 'ISO-8601', 'json.ignore-parse-errors' = 'true'
)
"""

MINUTES = """
INSERT INTO pushed
SELECT push(card_id, payments, spent, DATE_FORMAT(ts, 'yyyy-MM-dd''T''HH:mm:ss.SSS''Z'''))
FROM (
    SELECT card_id, COUNT(*) AS payments, SUM(amount) AS spent, MAX(ts) AS ts
    FROM TABLE(TUMBLE(TABLE payments, DESCRIPTOR(ts), INTERVAL '1' MINUTE))
    WHERE card_id IS NOT NULL
    GROUP BY card_id, window_start, window_end
)
"""


def main() -> None:
    """Run until stopped, or with --once until all that is there is done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bootstrap-servers", required=True)
    parser.add_argument("--topic", required=True)
    parser.add_argument("--jars", nargs="*", default=[], help="the SQL connector for Kafka, where the cluster lacks it")
    parser.add_argument("--larder", default="http://localhost:6566")
    parser.add_argument("--push-source", default="card_minutes_push")
    parser.add_argument("--once", action="store_true", help="end when all that is in the topic has been pushed")
    options = parser.parse_args()

    env = TableEnvironment.create(EnvironmentSettings.in_streaming_mode())
    settings = {
        "table.local-time-zone": "UTC",
        "execution.checkpointing.interval": "1 s",
        # the most rows of one push, and the longest that a row waits for others
        "python.fn-execution.bundle.size": "5000",
        "python.fn-execution.arrow.batch.size": "5000",
        "python.fn-execution.bundle.time": "200",
        "rest.bind-address": "127.0.0.1",
    }
    if options.jars:
        settings["pipeline.jars"] = ";".join(pathlib.Path(jar).resolve().as_uri() for jar in options.jars)
    for name, value in settings.items():
        env.get_config().set(name, value)
    env.add_python_file(str(pathlib.Path(__file__).resolve().parent.parent / "larder_push.py"))
    server, source = options.larder, options.push_source

    @udf(result_type=DataTypes.BIGINT(), func_type="pandas", deterministic=False)
    def push(card_id: pd.Series, payments: pd.Series, spent: pd.Series, ts: pd.Series) -> pd.Series:
        from larder_push import push as push_columns  # what runs in Flink's Python worker

        columns = {"card_id": card_id, "payments": payments, "spent": spent, "ts": ts}
        push_columns(server, source, {name: column.tolist() for name, column in columns.items()})
        return payments

    env.create_temporary_function("push", push)
    bounded = "'scan.bounded.mode' = 'latest-offset'," if options.once else ""
    env.execute_sql(SOURCE.format(topic=options.topic, servers=options.bootstrap_servers, bounded=bounded))
    env.execute_sql("CREATE TABLE pushed (payments BIGINT) WITH ('connector' = 'blackhole')")
    env.execute_sql(MINUTES).wait()


if __name__ == "__main__":
    main()
