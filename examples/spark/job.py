"""A PySpark Structured Streaming job that pushes features into Larder: payments and their sum per card and minute.

    spark-submit --packages org.apache.spark:spark-sql-kafka-0-10_2.13:4.2.0 --py-files ../larder_push.py job.py \
        --bootstrap-servers localhost:9092 --topic payments --checkpoint /var/lib/jobs/card_minutes

Messages are JSON: {"card_id": "c1", "amount": 9.5, "ts": "2026-01-01T10:00:00Z"}. Each micro-batch's changed windows
are pushed before Spark commits it; a push that fails fails the batch, which Spark does again from its checkpoint.
"""

from __future__ import annotations

import argparse

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as f
from pyspark.sql.types import DoubleType, StringType, StructType, TimestampType

from larder_push import push

MESSAGE = StructType().add("card_id", StringType()).add("amount", DoubleType()).add("ts", TimestampType())


def card_minutes(payments: DataFrame) -> DataFrame:
    """Per card and minute: how many payments, their sum, and the time of the last one."""
    return (
        payments.where("card_id is not null and ts is not null")
        .withWatermark("ts", "5 minutes")
        .groupBy("card_id", f.window("ts", "1 minute"))
        .agg(f.count("*").alias("payments"), f.sum("amount").alias("spent"), f.max("ts").alias("ts"))
        .select("card_id", "payments", "spent", f.date_format("ts", "yyyy-MM-dd'T'HH:mm:ss.SSSSSS'Z'").alias("ts"))
    )


def main() -> None:
    """Run until stopped, or with --once until all that is there is done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bootstrap-servers", required=True)
    parser.add_argument("--topic", required=True)
    parser.add_argument("--checkpoint", required=True, help="a directory of this job's own: offsets and windows")
    parser.add_argument("--larder", default="http://localhost:6566")
    parser.add_argument("--push-source", default="card_minutes_push")
    parser.add_argument("--once", action="store_true", help="end when all that is in the topic has been pushed")
    options = parser.parse_args()

    spark = SparkSession.builder.appName("card_minutes").config("spark.sql.session.timeZone", "UTC").getOrCreate()
    payments = (
        spark.readStream.format("kafka")
        .option("kafka.bootstrap.servers", options.bootstrap_servers)
        .option("subscribe", options.topic)
        .option("startingOffsets", "earliest")
        .load()
        .select(f.from_json(f.col("value").cast("string"), MESSAGE).alias("payment"))
        .select("payment.*")
    )

    def push_batch(batch: DataFrame, number: int) -> None:
        rows = batch.toPandas()
        pushed = push(options.larder, options.push_source, {name: rows[name].tolist() for name in rows.columns})
        print(f"batch {number}: {pushed} rows pushed", flush=True)

    writer = card_minutes(payments).writeStream.outputMode("update").foreachBatch(push_batch)
    trigger = {"availableNow": True} if options.once else {"processingTime": "1 second"}
    writer.option("checkpointLocation", options.checkpoint).trigger(**trigger).start().awaitTermination()


if __name__ == "__main__":
    main()
