"""Features for one question: will this flight leave late?

Entities: the airport it leaves from (`origin`), the airline (`carrier`), the plane (`tailnum`).
"""

from datetime import timedelta

from feast import Entity, FeatureService, FeatureView, Field, StreamFeatureView, ValueType
from feast.aggregation import Aggregation
from feast.types import Float64, Int64, String

from sources import departures_stream, planes_file, weather_push

origin = Entity(name="origin", value_type=ValueType.STRING, description="airport of departure, e.g. JFK")
carrier = Entity(name="carrier", value_type=ValueType.STRING, description="two-letter airline code, e.g. UA")
tailnum = Entity(name="tailnum", value_type=ValueType.STRING, description="tail number of the plane, e.g. N14228")

HOUR = timedelta(hours=1)

weather_by_origin = FeatureView(
    name="weather_by_origin",
    entities=[origin],
    ttl=timedelta(hours=6),
    source=weather_push,
    schema=[
        Field(name="temp", dtype=Float64, description="degrees Fahrenheit"),
        Field(name="dewp", dtype=Float64, description="dew point, degrees Fahrenheit"),
        Field(name="humid", dtype=Float64, description="relative humidity, percent"),
        Field(name="wind_dir", dtype=Float64, description="degrees"),
        Field(name="wind_speed", dtype=Float64, description="miles per hour"),
        Field(name="wind_gust", dtype=Float64, description="miles per hour"),
        Field(name="precip", dtype=Float64, description="inches"),
        Field(name="pressure", dtype=Float64, description="millibars at sea level"),
        Field(name="visib", dtype=Float64, description="miles"),
    ],
    description="Weather at the airport, the latest observation",
)

plane_facts = FeatureView(
    name="plane_facts",
    entities=[tailnum],
    ttl=timedelta(0),
    source=planes_file,
    schema=[
        Field(name="built", dtype=Int64, description="year of manufacture"),
        Field(name="type", dtype=String),
        Field(name="manufacturer", dtype=String),
        Field(name="model", dtype=String),
        Field(name="engines", dtype=Int64),
        Field(name="seats", dtype=Int64),
        Field(name="speed", dtype=Float64, description="cruising speed, miles per hour"),
        Field(name="engine", dtype=String),
    ],
    description="What is known of a plane",
)


def departures_in_the_last_hour(name: str, by: Entity) -> StreamFeatureView:
    """Departures of the last hour, and how late they left on average, for each value of one entity."""
    return StreamFeatureView(
        name=name,
        entities=[by],
        ttl=timedelta(days=1),
        mode="python",
        source=departures_stream,
        timestamp_field="event_timestamp",
        aggregations=[
            Aggregation(column="flight", function="count", time_window=HOUR, name=f"{by.name}_departures_1h"),
            Aggregation(column="dep_delay", function="mean", time_window=HOUR, name=f"{by.name}_mean_dep_delay_1h"),
        ],
        schema=[
            Field(name=f"{by.name}_departures_1h", dtype=Int64),
            Field(name=f"{by.name}_mean_dep_delay_1h", dtype=Float64, description="minutes"),
        ],
        description=f"Departures in the last hour by {by.name}",
    )


departures_by_carrier = departures_in_the_last_hour("departures_by_carrier", carrier)
departures_by_origin = departures_in_the_last_hour("departures_by_origin", origin)

will_leave_late = FeatureService(
    name="will_leave_late",
    features=[
        weather_by_origin[["temp", "humid", "wind_speed", "precip", "visib"]],
        plane_facts[["built", "manufacturer", "seats"]],
        departures_by_carrier,
        departures_by_origin,
    ],
    description="Will this flight leave late?",
)
