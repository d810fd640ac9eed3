//! The body of `/get-online-features` as clients mostly write it, read in one pass: the features as the text
//! that they are, for whoever knows that text; whole numbers and plain texts as entities. What is not so is left
//! to the reader of all of JSON, whose reading this one never differs from. Knows no registry.

use model::Value;
use model::registry::FeatureRequest;
use model::value::proto_value::Val;

/// A body in the usual form. It is JSON only if `features` is.
#[derive(Debug)]
pub(crate) struct Usual<'a> {
    /// The text of `features` (in brackets) or of `feature_service` (in quotes): whichever there is.
    pub(crate) features: &'a [u8],
    /// Columns by name, in order.
    pub(crate) entities: Vec<(String, Vec<Value>)>,
    /// `full_feature_names`.
    pub(crate) full_feature_names: bool,
    /// `include_feature_view_version_metadata`.
    pub(crate) include_feature_view_version_metadata: bool,
}

/// How deep lists and objects stand in one another in a body of this form.
pub(crate) const DEPTH: usize = 3;
/// More columns than these are not usual.
const COLUMNS: usize = 32;
/// Digits that fit in 64 bits, whatever they are.
const DIGITS: usize = 18;

/// Reads a body, if it has the usual form.
pub(crate) fn read(body: &[u8]) -> Option<Usual<'_>> {
    let mut json = Cursor { rest: body };
    let (mut features, mut entities, mut full_names, mut versions) = (None, None, None, None);
    json.all(b'{', b'}', |json| {
        let key = json.plain_text()?;
        json.sign(b':')?;
        match key {
            b"features" => once(&mut features, json.up_to_bracket()?),
            b"feature_service" => {
                let from = json.rest;
                let name = json.plain_text()?;
                // An empty name is as none.
                once(&mut features, from.get(..name.len() + 2).filter(|_| !name.is_empty())?)
            }
            b"entities" => once(&mut entities, json.columns()?),
            b"full_feature_names" => once(&mut full_names, json.flag()?),
            b"include_feature_view_version_metadata" => once(&mut versions, json.flag()?),
            _ => None,
        }
    })?;
    json.blank();
    json.rest.is_empty().then_some(Usual {
        features: features?,
        entities: entities?,
        full_feature_names: full_names.unwrap_or(false),
        include_feature_view_version_metadata: versions.unwrap_or(false),
    })
}

/// Whether this text, as [`read`] finds it, is JSON and means these features.
pub(crate) fn spells(text: &[u8], features: &FeatureRequest) -> bool {
    match features {
        FeatureRequest::Refs(refs) => serde_json::from_slice::<Vec<String>>(text).is_ok_and(|read| read == *refs),
        FeatureRequest::Service(name) => serde_json::from_slice::<String>(text).is_ok_and(|read| read == *name),
    }
}

/// A key that stands twice is not usual.
fn once<T>(slot: &mut Option<T>, value: T) -> Option<()> {
    slot.replace(value).is_none().then_some(())
}

/// What is left of a text. Every reader gives `None` where something else stands.
struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    fn blank(&mut self) {
        while let [b' ' | b'\n' | b'\r' | b'\t', rest @ ..] = self.rest {
            self.rest = rest;
        }
    }

    /// One sign with blanks around it.
    fn sign(&mut self, sign: u8) -> Option<()> {
        self.blank();
        self.rest = self.rest.split_first().filter(|(first, _)| **first == sign)?.1;
        self.blank();
        Some(())
    }

    /// Items with commas between them, from `open` to `close`.
    fn all(&mut self, open: u8, close: u8, mut item: impl FnMut(&mut Self) -> Option<()>) -> Option<()> {
        self.sign(open)?;
        if self.rest.first() == Some(&close) {
            return self.sign(close);
        }
        loop {
            item(self)?;
            self.blank();
            let (next, rest) = self.rest.split_first()?;
            self.rest = rest;
            self.blank();
            match *next {
                b',' => {}
                next => return (next == close).then_some(()),
            }
        }
    }

    /// A text with nothing escaped in it.
    fn plain_text(&mut self) -> Option<&'a [u8]> {
        let [b'"', text @ ..] = self.rest else { return None };
        let len = text.iter().position(|byte| matches!(byte, b'"' | b'\\' | ..0x20))?;
        let (text, rest) = text.split_at(len);
        self.rest = rest.strip_prefix(b"\"")?;
        Some(text)
    }

    /// From `[` to the first `]`, which may be within a text.
    fn up_to_bracket(&mut self) -> Option<&'a [u8]> {
        self.rest.first().filter(|first| **first == b'[')?;
        let len = self.rest.iter().position(|byte| *byte == b']')? + 1;
        let (text, rest) = self.rest.split_at(len);
        self.rest = rest;
        Some(text)
    }

    fn flag(&mut self) -> Option<bool> {
        let (flag, rest) = match self.rest.strip_prefix(b"true") {
            Some(rest) => (true, rest),
            None => (false, self.rest.strip_prefix(b"false")?),
        };
        self.rest = rest;
        Some(flag)
    }

    fn columns(&mut self) -> Option<Vec<(String, Vec<Value>)>> {
        let mut columns: Vec<(String, Vec<Value>)> = Vec::new();
        self.all(b'{', b'}', |json| {
            let name = text(json.plain_text()?)?;
            json.sign(b':')?;
            if columns.len() == COLUMNS || columns.iter().any(|(known, _)| *known == name) {
                return None;
            }
            // A number and its comma take two bytes; more are asked for where they are needed.
            let mut values = Vec::with_capacity((json.rest.len() / 2).min(128));
            json.all(b'[', b']', |json| {
                values.push(Value { val: Some(json.value()?) });
                Some(())
            })?;
            columns.push((name, values));
            Some(())
        })?;
        Some(columns)
    }

    fn value(&mut self) -> Option<Val> {
        match self.rest.first()? {
            b'"' => self.plain_text().and_then(text).map(Val::StringVal),
            _ => self.number().map(Val::Int64Val),
        }
    }

    /// A whole number. What follows it is not looked at: a fraction is no comma and no bracket.
    fn number(&mut self) -> Option<i64> {
        let digits = self.rest.strip_prefix(b"-").unwrap_or(self.rest);
        let negative = digits.len() < self.rest.len();
        let len = digits.iter().position(|byte| !byte.is_ascii_digit())?;
        let (number, rest) = digits.split_at(len);
        // -0 is a double, and 01 is no JSON.
        if !(1..=DIGITS).contains(&len) || (number[0] == b'0' && (len > 1 || negative)) {
            return None;
        }
        let number = number.iter().fold(0i64, |number, digit| number * 10 + i64::from(digit - b'0'));
        self.rest = rest;
        Some(if negative { -number } else { number })
    }
}

fn text(bytes: &[u8]) -> Option<String> {
    std::str::from_utf8(bytes).ok().map(str::to_owned)
}

#[cfg(test)]
mod tests;
