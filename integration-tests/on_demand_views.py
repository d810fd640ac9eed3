"""On-demand feature views of every mode over one pushed view, for the tests; some of their functions misbehave."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas as pd
from feast import Entity, FeatureService, FeatureView, Field, FileSource, PushSource, RequestSource, ValueType
from feast.on_demand_feature_view import OnDemandFeatureView, on_demand_feature_view
from feast.transformation.substrait_transformation import SubstraitTransformation
from feast.types import Array, Bool, FeastType, Float64, Int32, Int64, Map, String, UnixTimestamp, Uuid

from larder_env.process import wait_until
from larder_env.server import Larder
from online import metric

HARMFUL = {"raise": 661, "kill": 662, "spin": 663, "swell": 664, "text": 665}
"""What `danger` does when the request asks for it by this number."""

DRIVER = Entity(name="driver", join_keys=["driver_id"], value_type=ValueType.INT64)


PLAN = Path(__file__).parent / "rows.substrait"
"""What ibis-framework 9.5.0 with ibis-substrait 4.0.1 makes of a table `t` of trips, conv_rate, rating and val (the
versions that Feast 0.67 asks for do not fit together):
`t.mutate(s_sum=t.conv_rate + t.val, s_trips=ibis.ifelse(t.trips > t.val, t.trips * t.val, t.trips),
s_known=t.rating.isin(["good", "bad"]))`."""


def same(table: object) -> object:
    """A stand-in for the ibis function, which nothing here calls: the plan is what runs."""
    return table


def wait_for_workers(larder: Larder, number: int) -> None:
    """Wait until so many workers are ready: importing Feast takes them a while on a busy machine."""
    started, replaced = (f"larder_transformation_workers_{what}_total" for what in ("started", "replaced"))
    wait_until(lambda: sum(metric(larder, started)) - sum(metric(larder, replaced)) >= number, "workers", 120)


def sources() -> tuple[FeatureView, FeatureView, RequestSource]:
    """Two views with push sources, and request data."""
    schemas: dict[str, dict[str, FeastType]] = {
        "stats": {
            "trips": Int64,
            "conv_rate": Float64,
            "rating": String,
            "seats": Int32,
            "since": UnixTimestamp,
            "tags": Array(String),
        },
        "more": {"badge": Uuid, "trips": Int64},
    }
    stats, more = (
        FeatureView(
            name=name,
            entities=[DRIVER],
            ttl=timedelta(days=1),
            source=PushSource(
                name=f"{name}_push",
                batch_source=FileSource(name=f"{name}_file", path=f"{name}.parquet", timestamp_field="event_timestamp"),
            ),
            schema=[Field(name=feature, dtype=dtype) for feature, dtype in schema.items()],
        )
        for name, schema in schemas.items()
    )
    request = RequestSource(name="asked", schema=[Field(name="val", dtype=Int64), Field(name="factor", dtype=Float64)])
    return stats, more, request


def objects() -> list[Any]:
    """Fresh objects to apply."""
    stats, more, asked = sources()

    @on_demand_feature_view(
        sources=[stats, asked],
        schema=[Field(name="conv_plus", dtype=Float64), Field(name="trips_plus", dtype=Int64)],
        mode="pandas",
    )
    def sums(inputs: pd.DataFrame) -> pd.DataFrame:
        out = pd.DataFrame()
        out["conv_plus"] = inputs["conv_rate"] * inputs["factor"] + inputs["stats__seats"]
        out["trips_plus"] = inputs["trips"] + inputs["val"]
        return out

    @on_demand_feature_view(
        sources=[stats, asked],
        schema=[
            Field(name="py_trips", dtype=Int64),
            Field(name="py_label", dtype=String),
            Field(name="py_tags", dtype=Array(String)),
            Field(name="py_since", dtype=UnixTimestamp),
            Field(name="py_good", dtype=Bool),
        ],
        mode="python",
    )
    def listed(inputs: dict[str, Any]) -> dict[str, Any]:
        return {
            "py_trips": [None if t is None else t + v for t, v in zip(inputs["trips"], inputs["val"], strict=True)],
            "py_label": [f"{r}!" for r in inputs["stats__rating"]],
            "py_tags": [[t.upper() for t in tags or []] for tags in inputs["tags"]],
            "py_since": inputs["since"],
            "py_good": [r == "good" for r in inputs["rating"]],
        }

    @on_demand_feature_view(
        sources=[stats, asked],
        schema=[Field(name="one_trips", dtype=Int64), Field(name="one_list", dtype=Array(Float64))],
        mode="python",
        singleton=True,
    )
    def single(inputs: dict[str, Any]) -> dict[str, Any]:
        return {
            "one_trips": (inputs["trips"] or 0) * 2 + inputs["val"],
            "one_list": [[1.0 * (inputs["seats"] or 0), 0.5]],
        }

    @on_demand_feature_view(
        sources=[more],
        schema=[Field(name="badge_again", dtype=Uuid), Field(name="extras_again", dtype=Map)],
        mode="python",
    )
    def rich(inputs: dict[str, Any]) -> dict[str, Any]:
        return {"badge_again": inputs["badge"], "extras_again": [{"n": t} for t in inputs["trips"]]}

    @on_demand_feature_view(sources=[stats, more, asked], schema=[Field(name="both", dtype=Int64)], mode="python")
    def twice(inputs: dict[str, Any]) -> dict[str, Any]:
        return {"both": [a * 1000 + b for a, b in zip(inputs["stats__trips"], inputs["more__trips"], strict=True)]}

    @on_demand_feature_view(sources=[asked], schema=[Field(name="doubled", dtype=Int64)], mode="pandas")
    def data_only(inputs: pd.DataFrame) -> pd.DataFrame:
        return pd.DataFrame({"doubled": inputs["val"] * 2})

    @on_demand_feature_view(sources=[asked], schema=[Field(name="harm", dtype=Int64)], mode="python")
    def danger(inputs: dict[str, Any]) -> dict[str, Any]:
        val = inputs["val"][0]
        if val == 661:
            return {"harm": [1 // 0]}
        if val == 662:
            os._exit(3)
        while val == 663:
            pass
        if val == 664:
            hoard = bytearray(1 << 30)
            hoard[::4096] = b"x" * len(hoard[::4096])
            time.sleep(60)  # holds the memory until Larder has seen it and killed this worker
        return {"harm": ["much"] if val == 665 else list(inputs["val"])}

    @on_demand_feature_view(
        entities=[DRIVER],
        sources=[stats],
        schema=[Field(name="stored_sum", dtype=Float64)],
        mode="python",
        write_to_online_store=True,
    )
    def stored(inputs: dict[str, Any]) -> dict[str, Any]:
        pairs = zip(inputs["trips"], inputs["conv_rate"], strict=True)
        return {"stored_sum": [t + c for t, c in pairs]}

    planned = OnDemandFeatureView(
        name="planned",
        sources=[stats, asked],
        schema=[
            Field(name="s_sum", dtype=Float64),
            Field(name="s_trips", dtype=Int64),
            Field(name="s_known", dtype=Bool),
        ],
        mode="substrait",
        feature_transformation=SubstraitTransformation(substrait_plan=PLAN.read_bytes(), udf=same),
    )

    views: list[OnDemandFeatureView] = [sums, listed, single, rich, twice, data_only, danger, stored, planned]
    return [
        *(DRIVER, stats, more),
        *views,
        FeatureService(
            name="mixed", features=[stats[["rating"]], sums[["trips_plus"]], data_only.with_name("asked_for")]
        ),
    ]
