//! Whole numbers, from protobuf to digits without a branch for their size. Knows no column and no row.

/// Bytes that are read and written at a time.
const STEP: usize = 16;
/// Numbers for which room is made at a time.
const ROOM: usize = 64;
/// The key of a value among the values of a feature: field 1 of `FeatureVector`.
const VALUE: u8 = 0x0A;
/// The keys of `int32_val`, `int64_val` and `unix_timestamp_val` in `feast.types.Value`.
const INT32: u8 = 0x18;
const INT64: u8 = 0x20;
const UNIX_TIMESTAMP: u8 = 0x40;
/// Numbers below have at most fifteen digits: with a comma they fill a step.
const MOST: u64 = 1_000_000_000_000_000;

/// Appends the numbers at the start of a feature's values, with a comma behind each; gives the bytes that they
/// have there. It stops where another value stands, and where a number is negative, great or oddly written.
///
/// The values are `bytes[..end]`; what lies behind is read, and not used.
pub(super) fn numbers(out: &mut Vec<u8>, bytes: &[u8], end: usize) -> usize {
    let (mut at, mut to) = (0, out.len());
    while at < end && matches!(bytes.get(at + 2), Some(&(INT32 | INT64 | UNIX_TIMESTAMP))) {
        // Room for many at once: each is written as a whole step.
        out.resize(to + ROOM * STEP, 0);
        while at < end
            && let Some(place) = out.get_mut(to..).and_then(<[u8]>::first_chunk_mut::<STEP>)
            && let Some(cell) = bytes.get(at..).and_then(<[u8]>::first_chunk::<STEP>)
            && let [VALUE, len @ 2..=9, key @ (INT32 | INT64 | UNIX_TIMESTAMP), ..] = cell
            && let Some(number) = varint((u128::from_le_bytes(*cell) >> 24) as u64, u32::from(*len) - 1)
            && number < if *key == INT32 { 1 << 31 } else { MOST }
        {
            let (text, length) = with_comma(number);
            *place = text.to_le_bytes();
            (at, to) = (at + usize::from(*len) + 2, to + length);
        }
        let full = to + STEP > out.len();
        out.truncate(to);
        if !full {
            break;
        }
    }
    at
}

/// Appends a number below [`MOST`] and a comma.
fn put(out: &mut Vec<u8>, number: u64) {
    let (text, len) = with_comma(number);
    let start = out.len();
    out.extend_from_slice(&text.to_le_bytes());
    out.truncate(start + len);
}

/// Appends a number of any size.
pub(super) fn integer(out: &mut Vec<u8>, number: i64) {
    match u64::try_from(number) {
        Ok(number) if number < MOST => {
            put(out, number);
            out.pop();
        }
        _ => out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes()),
    }
}

/// The number in the first `len` (1 to 8) bytes, if they are one varint; `None` also where more are needed.
#[inline]
fn varint(bytes: u64, len: u32) -> Option<u64> {
    // The first byte that does not say that more follow is the last.
    let end = (!bytes & 0x8080_8080_8080_8080).trailing_zeros();
    if end + 1 != 8 * len {
        return None;
    }
    let groups = bytes & (u64::MAX >> (63 - end));
    let groups = (groups & 0x007F_007F_007F_007F) | (groups & 0x7F00_7F00_7F00_7F00) >> 1;
    let groups = (groups & 0x0000_3FFF_0000_3FFF) | (groups & 0x3FFF_0000_3FFF_0000) >> 2;
    Some((groups & 0x0FFF_FFFF) | (groups & 0x0FFF_FFFF_0000_0000) >> 4)
}

/// The digits of a number below [`MOST`] and a comma, the first in the lowest byte, and how many they are.
#[inline]
fn with_comma(number: u64) -> (u128, usize) {
    // Fifteen digits with their zeros, and the comma: a sixteenth digit of nothing makes its place.
    const SIGNS: u128 = 0x2C30_3030_3030_3030_3030_3030_3030_3030;
    let (high, low) = (number * 10 / 100_000_000, number * 10 % 100_000_000);
    let first = if high < 100 { two(high) << 48 } else { eight(high) };
    let text = u128::from(eight(low)) << 64 | u128::from(first);
    let leading = (text.trailing_zeros() / 8).min(14);
    ((text | SIGNS) >> (8 * leading), 16 - leading as usize)
}

/// The two digits of a number below 100, as [`eight`] has them.
#[inline]
fn two(number: u64) -> u64 {
    let ten = (number * 103) >> 10;
    ten | (number - 10 * ten) << 8
}

/// The eight digits of a number below 10^8, as numbers, the first in the lowest byte: halves of four, then of
/// two, then of one digit, side by side in one word.
#[inline]
fn eight(number: u64) -> u64 {
    let fours = (number / 10_000) | ((number % 10_000) << 32);
    // n / 100 and n / 10 as a multiplication and a shift; exact for numbers of four and of two digits.
    let hundreds = ((fours * 10_486) >> 20) & 0x0000_007F_0000_007F;
    let twos = hundreds | (fours - 100 * hundreds) << 16;
    let tens = ((twos * 103) >> 10) & 0x000F_000F_000F_000F;
    tens | (twos - 10 * tens) << 8
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Numbers of every length.
    fn number() -> impl Strategy<Value = u64> {
        (any::<u64>(), 0u32..64).prop_map(|(number, shift)| number >> shift)
    }

    fn text(number: i64) -> String {
        let mut out = b"before".to_vec();
        integer(&mut out, number);
        String::from_utf8(out).expect("UTF-8").split_off("before".len())
    }

    #[test]
    fn every_length_has_its_digits() {
        let tens = (0..19).map(|exponent| 10i64.pow(exponent));
        for number in tens.flat_map(|ten| [ten - 1, ten, ten + 1, ten * 9]).chain([i64::MAX, i64::MIN, 0]) {
            assert_eq!(text(number), number.to_string());
            assert_eq!(text(-(number.max(-i64::MAX))), (-(number.max(-i64::MAX))).to_string());
        }
    }

    proptest! {
        #[test]
        fn numbers_have_their_digits(number in number()) {
            prop_assert_eq!(text(number as i64), (number as i64).to_string());
        }

        /// Whatever is taken is what prost reads, wherever varints end and however they are padded.
        #[test]
        fn varints_are_prosts(number in number(), padding in 0usize..3, noise in any::<u64>(), len in 1u32..9) {
            let mut bytes = Vec::new();
            prost::encoding::encode_varint(number, &mut bytes);
            for _ in 0..padding {
                *bytes.last_mut().expect("a byte") |= 0x80;
                bytes.push(0);
            }
            let whole = bytes.len() as u32;
            bytes.extend(noise.to_le_bytes());
            let first = u64::from_le_bytes(*bytes.first_chunk().expect("eight bytes"));
            prop_assert_eq!(varint(first, len), (whole == len).then_some(number));
        }
    }
}
