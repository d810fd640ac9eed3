//! The same rows in Redis, in Feast's layout (FEAST_CONTRACT.md, "Redis layout"), and the commands that read
//! them: what a client that needs no feature server would send.

use model::EntityKey;
use prost::Message as _;

use crate::error::Result;
use crate::wire::{self, Prepared};
use crate::workload::{self, EVENT_SECONDS, PROJECT, Shape, WIDTH};

fn key(user: i64) -> Result<Vec<u8>> {
    let key = EntityKey::encode(&[("user_id", &workload::int64(user))])?;
    Ok([key.as_bytes(), PROJECT.as_bytes()].concat())
}

/// A feature's field: MurmurHash3 (x86, 32 bits, seed 0) of `view:feature`, little-endian.
fn field(view: usize, feature: usize) -> [u8; 4] {
    let name = format!("{}:{}", workload::view_name(view), workload::feature_name(view, feature));
    murmur3(name.as_bytes()).to_le_bytes()
}

fn time_field(view: usize) -> Vec<u8> {
    format!("_ts:{}", workload::view_name(view)).into_bytes()
}

fn murmur3(bytes: &[u8]) -> u32 {
    let mix = |k: u32| k.wrapping_mul(0xcc9e_2d51).rotate_left(15).wrapping_mul(0x1b87_3593);
    let (blocks, rest) = bytes.as_chunks::<4>();
    let mut h = 0_u32;
    for block in blocks {
        h = (h ^ mix(u32::from_le_bytes(*block))).rotate_left(13).wrapping_mul(5).wrapping_add(0xe654_6b64);
    }
    if !rest.is_empty() {
        h ^= mix(rest.iter().rev().fold(0, |k, byte| k << 8 | u32::from(*byte)));
    }
    h ^= bytes.len() as u32;
    h = (h ^ (h >> 16)).wrapping_mul(0x85eb_ca6b);
    h = (h ^ (h >> 13)).wrapping_mul(0xc2b2_ae35);
    h ^ (h >> 16)
}

/// The commands that write the rows of `keys` users in the first `views` views.
pub(crate) fn fill(keys: u64, views: usize) -> Result<Vec<Prepared>> {
    let mut time = vec![0x08];
    prost::encoding::encode_varint(EVENT_SECONDS as u64, &mut time);
    (0..keys as i64)
        .map(|user| {
            let mut words: Vec<Vec<u8>> = vec![b"HSET".to_vec(), key(user)?];
            for view in 0..views {
                for feature in 0..WIDTH {
                    words.push(field(view, feature).to_vec());
                    words.push(workload::int64(workload::value(user, view, feature)).encode_to_vec());
                }
                words.extend([time_field(view), time.clone()]);
            }
            Ok(request(&[words]))
        })
        .collect()
}

fn request(commands: &[Vec<Vec<u8>>]) -> Prepared {
    let mut bytes = Vec::new();
    for words in commands {
        wire::redis_command(&mut bytes, &words.iter().map(Vec::as_slice).collect::<Vec<_>>());
    }
    Prepared { bytes, replies: commands.len() }
}

/// One HMGET for each user, pipelined: the features, then each view's time.
pub(crate) fn read(shape: Shape, users: &[i64]) -> Result<Prepared> {
    let mut fields: Vec<Vec<u8>> =
        (0..shape.views()).flat_map(|v| (0..WIDTH).map(move |f| field(v, f).to_vec())).collect();
    fields.extend((0..shape.views()).map(time_field));
    let commands = users
        .iter()
        .map(|user| Ok([b"HMGET".to_vec(), key(*user)?].into_iter().chain(fields.iter().cloned()).collect()))
        .collect::<Result<Vec<Vec<Vec<u8>>>>>()?;
    Ok(request(&commands))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_murmur3() {
        // the reference implementation's verification values for seed 0
        for (text, wanted) in [("", 0), ("a", 0x3c25_69b2), ("abc", 0xb3dd_93fa), ("hello, world", 0x149b_bb7f)] {
            assert_eq!(murmur3(text.as_bytes()), wanted, "{text}");
        }
    }
}
