//! Points in time: microseconds since the Unix epoch, UTC. Knows no clock.

use chrono::{DateTime, NaiveDate, NaiveDateTime, SecondsFormat, Utc};
use prost_types::Timestamp as ProtoTimestamp;

use crate::error::{Error, Result};

/// A point in time in microseconds since 1970-01-01T00:00:00Z; may be negative.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub i64);

const MICROS: i64 = 1_000_000;

impl Timestamp {
    /// Before every event.
    pub const MIN: Self = Self(i64::MIN);
    /// After every event.
    pub const MAX: Self = Self(i64::MAX);

    /// From whole seconds since the epoch.
    pub fn from_seconds(seconds: i64) -> Self {
        Self(seconds.saturating_mul(MICROS))
    }

    /// From a number whose unit shows in its magnitude: below 10^11 it is seconds (until the year
    /// 5138), below 10^14 milliseconds, below 10^17 microseconds, else nanoseconds.
    pub fn from_epoch(number: i64) -> Self {
        match number.unsigned_abs() {
            n if n < 100_000_000_000 => Self(number * MICROS),
            n if n < 100_000_000_000_000 => Self(number * 1000),
            n if n < 100_000_000_000_000_000 => Self(number),
            _ => Self(number / 1000),
        }
    }

    /// Microseconds since the epoch.
    pub fn micros(self) -> i64 {
        self.0
    }

    /// From `google.protobuf.Timestamp`; nanoseconds below a microsecond are cut.
    pub fn from_proto(t: &ProtoTimestamp) -> Self {
        Self(t.seconds.saturating_mul(MICROS).saturating_add(i64::from(t.nanos) / 1000))
    }

    /// To `google.protobuf.Timestamp`.
    pub fn to_proto(self) -> ProtoTimestamp {
        ProtoTimestamp { seconds: self.0.div_euclid(MICROS), nanos: (self.0.rem_euclid(MICROS) * 1000) as i32 }
    }

    /// Reads an ISO 8601 / RFC 3339 date or date-time, with `T` or a space; naive means UTC.
    pub fn parse(text: &str) -> Result<Self> {
        let text = text.trim();
        if let Ok(t) = DateTime::parse_from_rfc3339(text) {
            return Ok(Self(t.timestamp_micros()));
        }
        for format in ["%Y-%m-%dT%H:%M:%S%.f%#z", "%Y-%m-%d %H:%M:%S%.f%#z"] {
            if let Ok(t) = DateTime::parse_from_str(text, format) {
                return Ok(Self(t.timestamp_micros()));
            }
        }
        for format in ["%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M", "%Y-%m-%d %H:%M"] {
            if let Ok(t) = NaiveDateTime::parse_from_str(text, format) {
                return Ok(Self(t.and_utc().timestamp_micros()));
            }
        }
        if let Some(t) = NaiveDate::parse_from_str(text, "%Y-%m-%d").ok().and_then(|d| d.and_hms_opt(0, 0, 0)) {
            return Ok(Self(t.and_utc().timestamp_micros()));
        }
        Err(Error::invalid(format!(
            "{text:?} is not a timestamp: write it as ISO 8601, for example 2026-01-31T12:00:00Z"
        )))
    }

    /// RFC 3339 in UTC with `Z`: no fraction, three or six digits, the fewest that lose nothing
    /// (`_timestamp_to_str` in `feast/feature_server_utils.py`).
    pub fn to_rfc3339(self) -> String {
        match DateTime::<Utc>::from_timestamp_micros(self.0) {
            Some(t) => t.to_rfc3339_opts(SecondsFormat::AutoSi, true),
            None => format!("{}us", self.0),
        }
    }
}

impl std::fmt::Display for Timestamp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.to_rfc3339())
    }
}

/// A `google.protobuf.Duration` in microseconds; 0 where absent.
pub fn duration_us(d: Option<&prost_types::Duration>) -> i64 {
    d.map_or(0, |d| d.seconds.saturating_mul(MICROS).saturating_add(i64::from(d.nanos) / 1000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_feast_clients_send() {
        let want = Timestamp(1_767_225_600_000_000);
        for text in [
            "2026-01-01",
            "2026-01-01T00:00",
            "2026-01-01 00:00:00",
            "2026-01-01T00:00:00Z",
            "2026-01-01 00:00:00+00:00",
            "2026-01-01T01:00:00.000000+01:00",
            "2026-01-01T01:00:00+0100",
        ] {
            assert_eq!(Timestamp::parse(text).expect(text), want, "{text}");
        }
        assert!(Timestamp::parse("yesterday").expect_err("no date").message().contains("yesterday"));
    }

    #[test]
    fn writes_the_fewest_digits_that_lose_nothing() {
        let t = 1_767_225_600_000_000;
        assert_eq!(Timestamp(t).to_rfc3339(), "2026-01-01T00:00:00Z");
        assert_eq!(Timestamp(t + 120_000).to_rfc3339(), "2026-01-01T00:00:00.120Z");
        assert_eq!(Timestamp(t + 5).to_rfc3339(), "2026-01-01T00:00:00.000005Z");
        assert_eq!(Timestamp(-1).to_proto(), ProtoTimestamp { seconds: -1, nanos: 999_999_000 });
        assert_eq!(Timestamp::from_proto(&Timestamp(-1).to_proto()), Timestamp(-1));
    }
}
