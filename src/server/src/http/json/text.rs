//! JSON's scalars as Python's `json.dumps(…, ensure_ascii=False)` writes them. Knows no protobuf.

/// How a byte stands in a JSON string: 0 as it is, `u` as `\u00xx`, else behind a backslash.
const ESCAPES: [u8; 256] = escapes();

const fn escapes() -> [u8; 256] {
    let mut table = [0; 256];
    let mut control = 0;
    while control < 0x20 {
        table[control] = b'u';
        control += 1;
    }
    table[0x08] = b'b';
    table[0x09] = b't';
    table[0x0A] = b'n';
    table[0x0C] = b'f';
    table[0x0D] = b'r';
    table[b'"' as usize] = b'"';
    table[b'\\' as usize] = b'\\';
    table
}

/// A string in quotes.
pub(super) fn string(out: &mut Vec<u8>, text: &str) {
    let bytes = text.as_bytes();
    out.reserve(bytes.len() + 2);
    out.push(b'"');
    let mut plain = 0;
    for (at, byte) in bytes.iter().enumerate() {
        let escape = ESCAPES[usize::from(*byte)];
        if escape == 0 {
            continue;
        }
        out.extend_from_slice(&bytes[plain..at]);
        plain = at + 1;
        if escape == b'u' {
            const HEX: &[u8; 16] = b"0123456789abcdef";
            let digits = [HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]];
            out.extend_from_slice(b"\\u00");
            out.extend_from_slice(&digits);
        } else {
            out.extend_from_slice(&[b'\\', escape]);
        }
    }
    out.extend_from_slice(&bytes[plain..]);
    out.push(b'"');
}

/// A double as Python's `repr` has it: the fewest digits that read back as the same number, with an
/// exponent below 1e-4 and from 1e16 on. What JSON has no number for is a string, as in protobuf's JSON.
pub(super) fn double(out: &mut Vec<u8>, number: f64) {
    if !number.is_finite() {
        let name: &[u8] = match (number.is_nan(), number > 0.0) {
            (true, _) => b"\"NaN\"",
            (false, true) => b"\"Infinity\"",
            (false, false) => b"\"-Infinity\"",
        };
        out.extend_from_slice(name);
        return;
    }
    let mut buffer = zmij::Buffer::new();
    let shortest = buffer.format_finite(number);
    let size = number.abs();
    if size == 0.0 || (1e-4..1e16).contains(&size) {
        out.extend_from_slice(shortest.as_bytes());
    } else {
        scientific(out, shortest);
    }
}

/// `d.ddde±XX` from the same digits in any notation.
fn scientific(out: &mut Vec<u8>, number: &str) {
    let (mantissa, exponent) = number.split_once(['e', 'E']).unwrap_or((number, "0"));
    let digits = mantissa.strip_prefix('-');
    if digits.is_some() {
        out.push(b'-');
    }
    let (whole, fraction) = digits.unwrap_or(mantissa).split_once('.').unwrap_or((digits.unwrap_or(mantissa), ""));
    let all: Vec<u8> = whole.bytes().chain(fraction.bytes()).collect();
    let zeros = all.iter().take_while(|d| **d == b'0').count();
    let end = all.iter().rposition(|d| *d != b'0').map_or(zeros, |at| at + 1);
    let significant = &all[zeros..end];
    let exponent = exponent.parse::<i32>().unwrap_or_default() + whole.len() as i32 - zeros as i32 - 1;
    let Some((first, rest)) = significant.split_first() else { return out.push(b'0') };
    out.push(*first);
    if !rest.is_empty() {
        out.push(b'.');
        out.extend_from_slice(rest);
    }
    out.push(b'e');
    out.push(if exponent < 0 { b'-' } else { b'+' });
    if exponent.abs() < 10 {
        out.push(b'0');
    }
    super::whole::integer(out, i64::from(exponent.abs()));
}

/// Bytes in base64, in quotes.
pub(super) fn base64(out: &mut Vec<u8>, bytes: &[u8]) {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    out.push(b'"');
    let start = out.len();
    out.resize(start + bytes.len().div_ceil(3) * 4, 0);
    // The buffer has the exact length, so nothing can fail; if it did, nothing would be written.
    let written = STANDARD.encode_slice(bytes, &mut out[start..]).unwrap_or_default();
    out.truncate(start + written);
    out.push(b'"');
}

/// A point in time, in quotes: RFC 3339 in UTC with no fraction, three or six digits.
pub(super) fn time(out: &mut Vec<u8>, time: model::Timestamp) {
    let micros = time.micros();
    let days = micros.div_euclid(DAY);
    let Some((year, month, day)) = civil(days) else {
        return string(out, &time.to_rfc3339());
    };
    let of_day = micros.rem_euclid(DAY) as u64;
    let (seconds, fraction) = (of_day / 1_000_000, of_day % 1_000_000);
    let mut text = *b"\"0000-00-00T00:00:00";
    put(&mut text[1..5], year);
    put(&mut text[6..8], month);
    put(&mut text[9..11], day);
    put(&mut text[12..14], seconds / 3600);
    put(&mut text[15..17], seconds / 60 % 60);
    put(&mut text[18..20], seconds % 60);
    out.extend_from_slice(&text);
    if fraction != 0 {
        let mut digits = *b".000000";
        put(&mut digits[1..], fraction);
        out.extend_from_slice(if fraction % 1000 == 0 { &digits[..4] } else { &digits });
    }
    out.extend_from_slice(b"Z\"");
}

const DAY: i64 = 86_400_000_000;

/// Writes a number over all of `digits`, with leading zeros.
fn put(digits: &mut [u8], mut number: u64) {
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

/// The date of a day since 1970-01-01, for the years 1 to 9999.
///
/// Source: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`.
fn civil(days: i64) -> Option<(u64, u64, u64)> {
    // 0001-01-01 and 9999-12-31
    if !(-719_162..=2_932_896).contains(&days) {
        return None;
    }
    let shifted = (days + 719_468) as u64;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    Some((year_of_era + era * 400 + u64::from(month <= 2), month, day))
}
