//! Whether a message's bytes hold a field that our descriptors do not know, at whatever depth: then the
//! typed message is not all of it. Decides from values alone.

use std::collections::HashMap;

use model::{Error, Result};
use prost::Message;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use prost_types::{DescriptorProto, FileDescriptorSet};

/// The fields of every message of `proto/`: by number, with the message's name where it is one.
pub(super) struct Schema(HashMap<String, HashMap<u32, Option<String>>>);

impl Schema {
    /// Reads `proto::DESCRIPTORS` (a fraction of a millisecond).
    ///
    /// Errors: they are broken, which is our fault.
    pub(super) fn load() -> Result<Self> {
        let set = FileDescriptorSet::decode(proto::DESCRIPTORS)
            .map_err(|e| Error::internal("our own descriptors are broken", e))?;
        let mut schema = Self(HashMap::new());
        for file in &set.file {
            file.message_type.iter().for_each(|m| schema.add(&format!(".{}", file.package()), m));
        }
        Ok(schema)
    }

    fn add(&mut self, scope: &str, message: &DescriptorProto) {
        let name = format!("{scope}.{}", message.name());
        let nested = |name: &str| name.starts_with('.').then(|| name.to_owned());
        let fields = message.field.iter();
        let fields = fields.map(|f| (f.number() as u32, nested(f.type_name()))).collect();
        message.nested_type.iter().for_each(|m| self.add(&name, m));
        self.0.insert(name, fields);
    }

    /// Whether every field in the bytes of the message `name` (`.feast.core.Entity`) is known.
    ///
    /// Errors: bytes that are no message.
    pub(super) fn knows(&self, name: &str, mut bytes: &[u8]) -> Result<bool, prost::DecodeError> {
        // an enum's name is none of a message: its field is a number
        let Some(fields) = self.0.get(name) else { return Ok(true) };
        while !bytes.is_empty() {
            let (number, wire_type) = decode_key(&mut bytes)?;
            let Some(field) = fields.get(&number) else { return Ok(false) };
            let mut rest = bytes;
            skip_field(wire_type, number, &mut bytes, DecodeContext::default())?;
            if let (Some(nested), WireType::LengthDelimited) = (field, wire_type) {
                let len = decode_varint(&mut rest)? as usize;
                if !self.knows(nested, rest.get(..len).unwrap_or_default())? {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::feast::core;
    use proto::raw;

    #[test]
    fn an_unknown_field_is_found_at_whatever_depth() {
        let schema = Schema::load().expect("loads");
        let source = core::DataSource {
            name: "s".into(),
            tags: [("empty".to_owned(), String::new())].into(),
            meta: Some(core::data_source::SourceMeta::default()),
            ..Default::default()
        };
        let nested = |extra: bool| {
            let mut inner = source.encode_to_vec();
            // a map entry with its default value written out, as Python writes it
            raw::push(&mut inner, 24, b"\x0a\x01k\x12\x00");
            if extra {
                raw::push(&mut inner, 99, b"x");
            }
            let mut spec = Vec::new();
            raw::push(&mut spec, 7, &inner);
            let mut view = Vec::new();
            raw::push(&mut view, 1, &spec);
            view
        };
        assert!(schema.knows(".feast.core.FeatureView", &nested(false)).expect("reads"));
        assert!(!schema.knows(".feast.core.FeatureView", &nested(true)).expect("reads"));
        assert!(schema.knows(".feast.core.FeatureView", b"\x0a\x09").is_err());
        assert!(!schema.knows(".feast.core.Entity", b"\x18\x01").expect("reads"));
    }
}
