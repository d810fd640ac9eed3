//! JSON objects of the form that most messages have: members that are texts without escapes, integers, decimal
//! fractions, booleans or null. Whatever else stands in one, it is not read here: `None`, and the whole parser decides.
//! Knows no types and no reasons.

use super::json::{Member, Members, Wanted, head};

/// Integers of so many digits fit 64 bits.
const DIGITS: usize = 18;
/// Digits of a fraction whose power of ten is a double.
const FRACTION: usize = 15;
/// Integers up to here are doubles, and so are correctly rounded quotients of them by powers of ten up to 10^22.
const EXACT: u64 = 1 << 53;
const TENS: [f64; FRACTION + 1] =
    [1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15];

/// The wanted members of an object.
pub(super) fn object<'a>(payload: &'a [u8], wanted: &Wanted) -> Option<Members<'a>> {
    let mut members = Members::of(wanted);
    let mut text = Text { bytes: payload, at: 0 };
    text.expect(b'{')?;
    if text.next()? == b'}' {
        text.at += 1;
        return text.is_over().then_some(members);
    }
    loop {
        text.expect(b'"')?;
        let (head, name) = text.name()?;
        text.expect(b':')?;
        let place = wanted.place_by(head, name);
        let first = text.next()?;
        if first == b'"' {
            text.at += 1;
            let (value, _) = text.string()?;
            if let Some(place) = place {
                members.set(place, Member::Text(std::str::from_utf8(value).ok()?));
            }
        } else {
            let value = match first {
                b't' => text.word(b"true", Member::Bool(true))?,
                b'f' => text.word(b"false", Member::Bool(false))?,
                b'n' => text.word(b"null", Member::Null)?,
                _ => text.number()?,
            };
            if let Some(place) = place {
                members.set(place, value);
            }
        }
        match text.next()? {
            b',' => text.at += 1,
            b'}' => {
                text.at += 1;
                return text.is_over().then_some(members);
            }
            _ => return None,
        }
    }
}

struct Text<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Text<'a> {
    /// The next byte that is no white space; it is not taken.
    fn next(&mut self) -> Option<u8> {
        loop {
            match *self.bytes.get(self.at)? {
                b' ' | b'\n' | b'\t' | b'\r' => self.at += 1,
                other => return Some(other),
            }
        }
    }

    fn expect(&mut self, byte: u8) -> Option<()> {
        (self.next()? == byte).then(|| self.at += 1)
    }

    fn is_over(&mut self) -> bool {
        self.next().is_none()
    }

    fn word<T>(&mut self, word: &[u8], value: T) -> Option<T> {
        let found = self.bytes[self.at..].starts_with(word);
        self.at += word.len();
        found.then_some(value)
    }

    /// A name of ASCII before the next quote, and its first bytes as [`Wanted::place_by`] takes them. Takes the quote.
    fn name(&mut self) -> Option<(u64, &'a [u8])> {
        let ahead = self.bytes.get(self.at..)?.first_chunk::<8>();
        let (name, ascii) = self.string()?;
        let behind = 64 - 8 * name.len().min(8) as u32;
        let word = |ahead| u64::from_le_bytes(ahead) & u64::MAX.checked_shr(behind).unwrap_or(0);
        ascii.then(|| (ahead.map_or_else(|| head(name), |ahead| word(*ahead)), name))
    }

    /// What stands before the next quote, and whether it is ASCII. Takes the quote.
    fn string(&mut self) -> Option<(&'a [u8], bool)> {
        const EACH: u64 = 0x0101_0101_0101_0101;
        const HIGH: u64 = 0x8080_8080_8080_8080;
        // bytes that are zero have their highest bit set in the outcome; above the first of them it may be wrong
        let zeros = |word: u64| word.wrapping_sub(EACH) & !word & HIGH;
        let text = &self.bytes[self.at..];
        let (mut at, mut all) = (0, 0);
        let end = loop {
            let Some(eight) = text.get(at..).and_then(|rest| rest.first_chunk::<8>()) else {
                break self.end_of(at, &mut all)?;
            };
            let word = u64::from_le_bytes(*eight);
            // a quote, a backslash, or a control character
            let found = zeros(word ^ (EACH * u64::from(b'"')))
                | zeros(word ^ (EACH * u64::from(b'\\')))
                | (word.wrapping_sub(EACH * 0x20) & !word & HIGH);
            if found != 0 {
                // the bits below the first of them
                all |= word & (found & found.wrapping_neg()).wrapping_sub(1);
                at += found.trailing_zeros() as usize / 8;
                if text[at] != b'"' {
                    return None;
                }
                break at;
            }
            all |= word;
            at += 8;
        };
        self.at += end + 1;
        Some((&text[..end], all & HIGH == 0))
    }

    /// The place of the quote that ends what stands here, from `at` on, for the last bytes of the object.
    fn end_of(&self, mut at: usize, all: &mut u64) -> Option<usize> {
        loop {
            match *self.bytes.get(self.at + at)? {
                b'"' => return Some(at),
                0..0x20 | b'\\' => return None,
                other => *all |= u64::from(other),
            }
            at += 1;
        }
    }

    /// Digits; how many there were is added to `count`.
    fn digits(&mut self, mut number: u64, count: &mut usize) -> u64 {
        while let Some(digit @ b'0'..=b'9') = self.bytes.get(self.at) {
            number = number.wrapping_mul(10).wrapping_add(u64::from(digit - b'0'));
            *count += 1;
            self.at += 1;
        }
        number
    }

    /// An integer or a decimal fraction. What follows it is looked at by the caller.
    fn number(&mut self) -> Option<Member<'a>> {
        let negative = self.bytes[self.at] == b'-';
        self.at += usize::from(negative);
        let (first, mut whole) = (*self.bytes.get(self.at)?, 0);
        let number = self.digits(0, &mut whole);
        // no digits, a zero before others, more than fits
        if whole == 0 || (first == b'0' && whole > 1) || whole > DIGITS {
            return None;
        }
        match self.bytes.get(self.at) {
            Some(b'.') => {
                self.at += 1;
                let mut fraction = 0;
                let number = self.digits(number, &mut fraction);
                let follows = matches!(self.bytes.get(self.at), Some(b'e' | b'E'));
                if fraction == 0 || fraction > FRACTION || whole + fraction > DIGITS || number > EXACT || follows {
                    return None;
                }
                let value = number as f64 / TENS[fraction];
                Some(Member::Float(if negative { -value } else { value }))
            }
            // `-0` is a double
            Some(b'e' | b'E') => None,
            _ if negative && number == 0 => None,
            _ => Some(Member::Integer(if negative { -(number as i64) } else { number as i64 })),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value as Json;

    use super::*;
    use crate::decode::Columns as _;
    use crate::decode::json::Record;
    use crate::feed::Source;
    use model::ValueType as T;

    const NAMES: [&str; 10] = ["a", "b", "user", "amount", "c", "d", "e", "f", "g", "ts"];

    fn columns(value_type: T) -> Vec<Source> {
        NAMES.map(|name| Source { name: name.to_owned(), value_type }).to_vec()
    }

    /// Both ways of reading say the same of every column, as every type.
    fn same(payload: &[u8]) -> bool {
        let wanted = Wanted::new(columns(T::String).iter());
        let whole = Record::parse_any(payload, &wanted);
        let Some(plain) = object(payload, &wanted) else { return false };
        let plain = Record::of(plain, &wanted);
        let whole = whole.expect("what the simple form reads is JSON");
        for value_type in [T::String, T::Double, T::Float, T::Int64, T::Int32, T::Bool, T::UnixTimestamp, T::Decimal] {
            for column in columns(value_type) {
                assert_eq!(plain.value(&column), whole.value(&column), "{value_type:?} {}", column.name);
                assert_eq!(plain.time(&column), whole.time(&column), "{}", column.name);
                if let Some(text) = plain.text(&column) {
                    let val = Some(model::value::proto_value::Val::StringVal(text.to_owned()));
                    assert_eq!(plain.value(&column), Ok(model::Value { val }), "{}", column.name);
                }
            }
        }
        true
    }

    #[test]
    fn what_is_plain_is_read_here_and_the_rest_is_not() {
        for text in [
            "{}",
            " { } \n",
            r#"{"user": "a", "amount": 7, "ts": 1767225600123, "x": "ü", "ok": true, "e": null}"#,
            r#"{"user":"ü","amount":-0.5,"a":0,"b":0.0,"c":-0.0,"d":123456789012345678,"e":0.1,"f":false}"#,
            r#"{"user": "first", "user": "last", "amount": 1, "amount": null}"#,
            r#"{"amount": 9007199254740992, "a": 9007199254740993, "b": 900719925474099.2, "c": 0.000000000000001}"#,
        ] {
            assert!(same(text.as_bytes()), "{text}");
        }
        for text in [
            "",
            "{",
            "[]",
            "{}x",
            r#"{"a": 1,}"#,
            r#"{"a" 1}"#,
            r#"{"a": "\u0041"}"#,
            r#"{"\u0061": 1}"#,
            r#"{"a": [1]}"#,
            r#"{"a": {}}"#,
            r#"{"a": 01}"#,
            r#"{"a": 1.}"#,
            r#"{"a": -}"#,
            r#"{"a": -0}"#,
            r#"{"a": 1e5}"#,
            r#"{"a": 1.0e5}"#,
            r#"{"a": 1234567890123456789}"#,
            r#"{"a": nul}"#,
            r#"{"a": truex}"#,
            r#"{"ü": 1}"#,
            "{\"a\": \"\n\"}",
            "{\"a\": \"12345678\u{1}\"}",
        ] {
            assert!(!same(text.as_bytes()), "{text}");
        }
        assert!(!same(b"{\"a\": \"\xff\"}"), "no text");
        assert!(same(b"{\"unwanted\": \"\xff\"}"), "what nobody wants is not looked at, here as there");
    }

    fn member() -> impl Strategy<Value = String> {
        prop_oneof![
            Just("null".to_owned()),
            any::<bool>().prop_map(|b| b.to_string()),
            any::<i64>().prop_map(|i| i.to_string()),
            (any::<i32>(), 0..10u32).prop_map(|(i, scale)| format!("{}", f64::from(i) / 10f64.powi(scale as i32))),
            "-?[0-9]{1,19}(\\.[0-9]{1,17})?([eE][0-9])?",
            any::<f64>().prop_filter("JSON has no other", |f| f.is_finite()).prop_map(|f| format!("{f}")),
            ".{0,20}".prop_map(|s| Json::from(s).to_string()),
            "[a-z\u{0}-\u{40}\\\\üß]{0,20}".prop_map(|s| format!("\"{s}\"")),
            Just("[1, {\"a\": 2}]".to_owned()),
        ]
    }

    proptest! {
        #[test]
        fn both_ways_agree(members in prop::collection::vec((0..NAMES.len(), member()), 0..8), space in "[ \n]{0,2}", cut in 0..400usize) {
            let members: Vec<String> =
                members.iter().map(|(name, value)| format!("{space}\"{}\"{space}:{space}{value}", NAMES[*name])).collect();
            let text = format!("{{{}{space}}}", members.join(","));
            same(text.as_bytes());
            same(&text.as_bytes()[..cut.min(text.len())]);
        }

        #[test]
        fn arbitrary_bytes_agree(bytes in prop::collection::vec(prop_oneof![any::<u8>(), Just(b'"'), Just(b'{'), Just(b':'), Just(b'}'), Just(b'1')], 0..30)) {
            same(&bytes);
        }
    }
}
