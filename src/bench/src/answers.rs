//! What an answer says, whatever its protocol: each feature's values and statuses, in one hash. Event times are
//! left out: servers may give them in different forms.

use std::collections::BTreeMap;

use prost::Message as _;
use proto::feast::serving::{FieldStatus, GetOnlineFeaturesResponse};
use proto::feast::types::value::Val;

use crate::error::{Error, Result};
use crate::workload::{self, Shape, WIDTH};

/// Feature to (value, status) for each entity of the request.
type Table = BTreeMap<String, Vec<(Option<i64>, String)>>;

fn bad(what: impl std::fmt::Display) -> Error {
    Error::Answer(format!("an answer could not be read: {what}"))
}

/// FNV-1a over what the answers say, in their order.
pub(crate) fn hash(tables: &[Table]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for table in tables {
        for byte in format!("{table:?}").bytes() {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    hash
}

/// What every server must answer.
pub(crate) fn expected(shape: Shape, users: &[i64]) -> Table {
    let mut table = Table::new();
    for view in 0..shape.views() {
        for feature in 0..WIDTH {
            let cells = users.iter().map(|u| (Some(workload::value(*u, view, feature)), "PRESENT".to_owned()));
            table.insert(workload::feature_name(view, feature), cells.collect());
        }
    }
    table
}

pub(crate) fn of_grpc(body: &[u8]) -> Result<Table> {
    let response = GetOnlineFeaturesResponse::decode(body).map_err(bad)?;
    let names = response.metadata.and_then(|m| m.feature_names).unwrap_or_default().val;
    let mut table = Table::new();
    for (name, vector) in names.into_iter().zip(response.results) {
        let cells = vector.values.iter().zip(&vector.statuses).map(|(value, status)| {
            let number = match value.val {
                Some(Val::Int64Val(n)) => Some(n),
                _ => None,
            };
            (number, FieldStatus::try_from(*status).unwrap_or_default().as_str_name().to_owned())
        });
        table.insert(name, cells.collect());
    }
    table.remove("user_id");
    Ok(table)
}

pub(crate) fn of_http(body: &[u8]) -> Result<Table> {
    let response: serde_json::Value = serde_json::from_slice(body).map_err(bad)?;
    let list = |value: &serde_json::Value| value.as_array().cloned().unwrap_or_default();
    let mut table = Table::new();
    for (name, vector) in list(&response["metadata"]["feature_names"]).iter().zip(list(&response["results"])) {
        let cells = list(&vector["values"]).into_iter().zip(list(&vector["statuses"]));
        let cells = cells.map(|(value, status)| (value.as_i64(), status.as_str().unwrap_or_default().to_owned()));
        table.insert(name.as_str().unwrap_or_default().to_owned(), cells.collect());
    }
    table.remove("user_id");
    Ok(table)
}

/// The replies to one HMGET for each entity, of the values of the shape's features in the order of
/// [`workload::references`] and one time for each view: bulk strings of serialized `feast.types.Value`.
pub(crate) fn of_redis(shape: Shape, body: &[u8]) -> Result<Table> {
    let mut table = Table::new();
    let mut rest = body;
    let line = |rest: &mut &[u8]| -> Result<i64> {
        let end = rest.iter().position(|b| *b == b'\r').ok_or_else(|| bad("RESP ends early"))?;
        let number = std::str::from_utf8(&rest[1..end]).map_err(bad)?.parse().map_err(bad)?;
        *rest = &rest[end + 2..];
        Ok(number)
    };
    while !rest.is_empty() {
        let count = line(&mut rest)? as usize;
        for at in 0..count {
            let len = line(&mut rest)?;
            let value = match usize::try_from(len) {
                Ok(len) => {
                    let value = &rest[..len];
                    rest = &rest[len + 2..];
                    proto::feast::types::Value::decode(value).ok().and_then(|v| v.val)
                }
                Err(_) => None,
            };
            if at >= shape.features {
                continue;
            }
            let cell = match value {
                Some(Val::Int64Val(n)) => (Some(n), "PRESENT".to_owned()),
                _ => (None, "NOT_FOUND".to_owned()),
            };
            table.entry(workload::feature_name(at / WIDTH, at % WIDTH)).or_default().push(cell);
        }
    }
    Ok(table)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire;

    #[test]
    fn every_protocol_says_the_same() {
        let shape = Shape { entities: 1, features: 50 };
        let wanted = expected(shape, &[7]);
        let (names, cells): (Vec<_>, Vec<_>) = wanted.iter().map(|(n, c)| (n.clone(), c[0].clone())).unzip();
        let results: Vec<_> =
            cells.iter().map(|(v, s)| serde_json::json!({ "values": [v], "statuses": [s] })).collect();
        let json = serde_json::json!({ "metadata": { "feature_names": names }, "results": results });
        assert_eq!(of_http(json.to_string().as_bytes()).expect("is JSON"), wanted);

        let mut values: Vec<Vec<u8>> =
            cells.iter().filter_map(|(v, _)| *v).map(|v| workload::int64(v).encode_to_vec()).collect();
        values.push(b"a time".to_vec());
        let mut reply = Vec::new();
        wire::redis_command(&mut reply, &values.iter().map(Vec::as_slice).collect::<Vec<_>>());
        assert_eq!(of_redis(shape, &reply).expect("is RESP"), wanted);
        assert_ne!(hash(&[wanted]), hash(&[expected(shape, &[8])]));
    }
}
