//! `feast.serving.GetOnlineFeaturesRequest` as clients mostly send it, read in one pass: the features as the bytes
//! that they are, for whoever knows those; the entities as values. What is not so is left to prost, whose reading
//! this one never differs from. Knows no registry.

use model::Value;
use model::registry::FeatureRequest;
use model::value::proto_value::Val;
use prost::Message as _;
use proto::feast::serving::FeatureList;

use crate::http::json::wire;

/// Keys of the request's fields, and of a map's entry.
const FEATURE_SERVICE: u8 = 0x0A;
const FEATURES: u8 = 0x12;
const ENTITIES: u8 = 0x1A;
const FULL_FEATURE_NAMES: u8 = 0x20;
const VERSION_METADATA: u8 = 0x30;
/// The key of `int64_val` in `feast.types.Value`.
const INT64: u8 = 0x20;

/// A request in the usual form.
#[derive(Debug, PartialEq)]
pub(super) struct Usual<'a> {
    /// `features` or `feature_service`, whichever there is, with its key. JSON begins with none of these keys.
    pub(super) spelling: &'a [u8],
    /// Columns by name, in the order of the names.
    pub(super) entities: Vec<(String, Vec<Value>)>,
    /// `full_feature_names`.
    pub(super) full_feature_names: bool,
    /// `include_feature_view_version_metadata`.
    pub(super) include_feature_view_version_metadata: bool,
}

impl Usual<'_> {
    /// The features; `None` where they are not what prost would read.
    pub(super) fn features(&self) -> Option<FeatureRequest> {
        let (key, mut rest) = self.spelling.split_first()?;
        let bytes = wire::delimited(&mut rest).ok()?;
        match *key {
            FEATURES => FeatureList::decode(bytes).ok().map(|list| FeatureRequest::Refs(list.val)),
            _ => wire::utf8(bytes).ok().map(|name| FeatureRequest::Service(name.to_owned())),
        }
    }
}

/// Reads gRPC's frame of one uncompressed message, if it is whole and the message has the usual form. It is one
/// that prost reads only if [`Usual::features`] are.
pub(super) fn read(frame: &[u8]) -> Option<Usual<'_>> {
    let (&[compressed, a, b, c, d], message) = frame.split_first_chunk()?;
    if compressed != 0 || u32::from_be_bytes([a, b, c, d]) as usize != message.len() {
        return None;
    }
    let mut entities: Vec<(String, Vec<Value>)> = Vec::with_capacity(1);
    let (mut spelling, mut full_names, mut versions) = (None, None, None);
    let mut rest = message;
    while let Some((key, after)) = rest.split_first() {
        let field = std::mem::replace(&mut rest, after);
        match *key {
            FEATURE_SERVICE | FEATURES => {
                wire::delimited(&mut rest).ok()?;
                once(&mut spelling, &field[..field.len() - rest.len()])?;
            }
            ENTITIES => entities.push(column(wire::delimited(&mut rest).ok()?)?),
            FULL_FEATURE_NAMES => once(&mut full_names, flag(&mut rest)?)?,
            VERSION_METADATA => once(&mut versions, flag(&mut rest)?)?,
            _ => return None,
        }
    }
    entities.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
    if entities.windows(2).any(|both| both[0].0 == both[1].0) {
        return None;
    }
    Some(Usual {
        spelling: spelling?,
        entities,
        full_feature_names: full_names.unwrap_or(false),
        include_feature_view_version_metadata: versions.unwrap_or(false),
    })
}

/// What stands twice is not usual.
fn once<T>(slot: &mut Option<T>, value: T) -> Option<()> {
    slot.replace(value).is_none().then_some(())
}

fn flag(rest: &mut &[u8]) -> Option<bool> {
    let (flag, after) = rest.split_first().filter(|(flag, _)| **flag < 2)?;
    *rest = after;
    Some(*flag == 1)
}

/// An entry of `entities`: a name, and values.
fn column(mut entry: &[u8]) -> Option<(String, Vec<Value>)> {
    let name = wire::utf8(wire::next(&mut entry, 1).ok()??).ok()?;
    let mut list = wire::only(entry, 2).ok()??;
    // An int64 takes five bytes mostly.
    let mut values = Vec::with_capacity(list.len() / 5 + 1);
    while let Some(value) = wire::next(&mut list, 1).ok()? {
        values.push(self::value(value)?);
    }
    Some((name.to_owned(), values))
}

fn value(bytes: &[u8]) -> Option<Value> {
    if let [INT64, rest @ ..] = bytes {
        let mut rest = rest;
        let number = wire::varint(&mut rest).ok()?;
        if rest.is_empty() {
            return Some(Value { val: Some(Val::Int64Val(number as i64)) });
        }
    }
    Value::decode(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use proto::feast::serving::GetOnlineFeaturesRequest;
    use proto::feast::serving::get_online_features_request::Kind;
    use proto::feast::types::RepeatedValue;

    fn frame(message: &[u8]) -> Vec<u8> {
        let mut out = vec![0];
        out.extend_from_slice(&(message.len() as u32).to_be_bytes());
        out.extend_from_slice(message);
        out
    }

    /// Features, columns, and the two flags.
    type Request = (FeatureRequest, Vec<(String, Vec<Value>)>, bool, bool);

    /// What the stubs make of a request.
    fn of_prost(message: &[u8]) -> Option<Request> {
        let request = GetOnlineFeaturesRequest::decode(message).ok()?;
        let features = match request.kind? {
            Kind::FeatureService(name) => FeatureRequest::Service(name),
            Kind::Features(list) => FeatureRequest::Refs(list.val),
        };
        let columns = request.entities.into_iter().chain(request.request_context);
        let entities = columns.map(|(name, column)| (name, column.val)).collect();
        Some((features, entities, request.full_feature_names, request.include_feature_view_version_metadata))
    }

    fn of_ours(message: &[u8]) -> Option<Request> {
        let framed = frame(message);
        let usual = read(&framed)?;
        let features = usual.features()?;
        Some((features, usual.entities, usual.full_feature_names, usual.include_feature_view_version_metadata))
    }

    fn value() -> impl Strategy<Value = Value> {
        prop_oneof![
            4 => any::<i64>().prop_map(|n| Some(Val::Int64Val(n))),
            1 => any::<i32>().prop_map(|n| Some(Val::Int32Val(n))),
            2 => "[a-zé]{0,3}".prop_map(|text| Some(Val::StringVal(text))),
            1 => Just(Some(Val::NullVal(0))),
            1 => Just(None),
        ]
        .prop_map(|val| Value { val })
    }

    fn requests() -> impl Strategy<Value = GetOnlineFeaturesRequest> {
        let kind = prop_oneof![
            proptest::collection::vec("[a-z:]{0,5}", 0..4).prop_map(|val| Kind::Features(FeatureList { val })),
            "[a-z]{0,4}".prop_map(Kind::FeatureService),
        ];
        let column = || proptest::collection::vec(value(), 0..4).prop_map(|val| RepeatedValue { val });
        let columns = || proptest::collection::btree_map("[a-z]{0,2}", column(), 0..3);
        let context = prop_oneof![4 => Just(std::collections::BTreeMap::new()), 1 => columns()];
        (proptest::option::weighted(0.9, kind), columns(), context, any::<bool>(), any::<bool>()).prop_map(
            |(kind, entities, request_context, full_feature_names, include_feature_view_version_metadata)| {
                GetOnlineFeaturesRequest {
                    kind,
                    entities,
                    full_feature_names,
                    request_context,
                    include_feature_view_version_metadata,
                }
            },
        )
    }

    #[test]
    fn a_common_request_is_usual() {
        let int = |n| Value { val: Some(Val::Int64Val(n)) };
        let request = GetOnlineFeaturesRequest {
            kind: Some(Kind::Features(FeatureList { val: vec!["view:feature".into()] })),
            entities: [("driver_id".to_owned(), RepeatedValue { val: vec![int(1001), int(-1)] })].into(),
            full_feature_names: true,
            ..GetOnlineFeaturesRequest::default()
        };
        let message = request.encode_to_vec();
        assert!(of_ours(&message).is_some());
        assert_eq!(of_ours(&message), of_prost(&message));
        let framed = frame(&message);
        assert!(read(&framed[..framed.len() - 1]).is_none(), "cut off");
        assert!(read(&[&framed[..], &framed].concat()).is_none(), "two messages");
        assert!(read(&[&[1], &framed[1..]].concat()).is_none(), "compressed");
    }

    proptest! {
        /// Whatever is usual is what prost reads, however it is written.
        #[test]
        fn the_reading_is_prosts(
            request in requests(), more in requests(), cut in any::<prop::sample::Index>(),
            at in any::<prop::sample::Index>(), byte in any::<u8>(), how in 0u8..4,
        ) {
            let mut message = request.encode_to_vec();
            match how {
                0 => {}
                // fields again, and in another order
                1 => message.extend(more.encode_to_vec()),
                2 => message.truncate(cut.index(message.len() + 1)),
                _ if message.is_empty() => {}
                _ => {
                    let at = at.index(message.len());
                    message[at] = byte;
                }
            }
            if let Some(ours) = of_ours(&message) {
                prop_assert_eq!(Some(ours), of_prost(&message));
            }
        }
    }
}
