//! Points in time in the zone they were read in, as Python's `isoformat` writes them
//! (`_zoned_timestamp_to_str` and `_zone_from_name` in Feast). The zones' rules are built in: no file is read.

use jiff::tz::{Offset, TimeZone};

/// ISO 8601 with the zone's offset at that time: an IANA name, an offset (`+05:30`, `UTC-0700`), else UTC.
/// `None` for Feast's null (the least number), and for years that have no four digits.
pub(super) fn iso_8601(seconds: i64, zone: &str) -> Option<String> {
    if seconds == i64::MIN {
        return None;
    }
    let at = jiff::Timestamp::from_second(seconds).ok()?;
    let offset = named(zone).map_or_else(|| fixed(zone).unwrap_or_default(), |zone| zone.to_offset(at).seconds());
    let local = Offset::from_seconds(offset).ok()?.to_datetime(at);
    if !(1..=9999).contains(&local.year()) {
        return None;
    }
    let seconds = match offset.unsigned_abs() % 60 {
        0 => String::new(),
        seconds => format!(":{seconds:02}"),
    };
    let (sign, size) = (if offset < 0 { '-' } else { '+' }, offset.unsigned_abs());
    Some(format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}{sign}{:02}:{:02}{seconds}",
        local.year(),
        local.month(),
        local.day(),
        local.hour(),
        local.minute(),
        local.second(),
        size / 3600,
        size / 60 % 60
    ))
}

/// The zone of exactly this name.
fn named(name: &str) -> Option<TimeZone> {
    let zone = jiff::tz::db().get(name).ok()?;
    (zone.iana_name() == Some(name)).then_some(zone)
}

/// The seconds of `UTC`, `GMT`, `±HH:MM` or `±HHMM` with or without one of them before it.
fn fixed(text: &str) -> Option<i32> {
    let text = text.trim();
    let number = text.strip_prefix("UTC").or_else(|| text.strip_prefix("GMT")).unwrap_or(text);
    let (sign, digits) = match number.as_bytes() {
        [b'+', digits @ ..] => (1, digits),
        [b'-', digits @ ..] => (-1, digits),
        _ => return None,
    };
    let ([a, b, b':', c, d] | [a, b, c, d]) = digits else { return None };
    let two = |tens: &u8, ones: &u8| {
        let both = [tens, ones].map(|d| d.is_ascii_digit().then(|| i32::from(d - b'0')));
        Some(both[0]? * 10 + both[1]?)
    };
    let seconds = sign * (two(a, b)? * 3600 + two(c, d)? * 60);
    (seconds.abs() < 86_400).then_some(seconds)
}
