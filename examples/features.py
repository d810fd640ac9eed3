"""What the two stream jobs fill: payments with a card in the last minute in which it was used. For `feast apply`."""

from datetime import timedelta

from feast import Entity, FeatureView, Field, FileSource, PushSource
from feast.types import Float64, Int64
from feast.value_type import ValueType

card = Entity(name="card", join_keys=["card_id"], value_type=ValueType.STRING)

card_minutes = FeatureView(
    name="card_minutes",
    entities=[card],
    ttl=timedelta(days=1),
    source=PushSource(
        name="card_minutes_push",
        batch_source=FileSource(name="card_minutes_file", path="data/card_minutes.parquet", timestamp_field="ts"),
    ),
    schema=[Field(name="payments", dtype=Int64), Field(name="spent", dtype=Float64)],
)
