//! All projects as one `feast.core.Registry`, for clients that want everything at once. Decides from
//! values alone.

use bytes::Bytes;
use model::Result;
use model::ports::ObjectKind;
use model::registry::Registry;
use prost::Message;
use proto::{feast::core, raw};

/// The bytes of a `feast.core.Registry` with every object as it is stored. Its `version_id` is a hash
/// of its content, and `last_updated` the time of the latest change of an object in it, so that both
/// stay as they are for as long as nothing changes, over restarts too.
///
/// Errors: an object that is damaged.
pub fn whole(registry: &Registry) -> Result<Bytes> {
    let mut out = Vec::new();
    let mut latest = None;
    for project in registry.projects.values() {
        for object in project.objects.values() {
            if object.kind.is_own() {
                continue;
            }
            // the one infra of the message is all of them merged, and so is the one history of
            // versions: protobuf's rule for repetition
            let mut record = Vec::new();
            let bytes: &[u8] = if object.kind == ObjectKind::FeatureViewVersion {
                raw::push(&mut record, 1, &object.bytes);
                &record
            } else {
                &object.bytes
            };
            raw::push(&mut out, object.kind.layout().registry, bytes);
            if object.kind != ObjectKind::Infra {
                latest = latest.max(object.updated()?);
            }
        }
    }
    let version = out
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    let rest = core::Registry {
        registry_schema_version: "1".to_owned(),
        version_id: format!("{version:016x}"),
        last_updated: latest.map(model::Timestamp::to_proto),
        ..Default::default()
    };
    out.extend(rest.encode_to_vec());
    Ok(out.into())
}
