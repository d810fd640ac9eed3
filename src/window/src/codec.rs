//! The bytes of a [`State`], for a store to keep: version, checksum, fingerprint, tiles, pending events.
//! Decoding takes any bytes and never panics; damaged bytes are refused, never read as something else. Knows no store.
//!
//! All fixed-width numbers are little-endian. A varint is LEB128; a signed one is zigzag first.
//!
//! ```text
//! state    = version u8 (2), checksum u32, fingerprint u64, now i64, latest (u8 0 | u8 1, i64), tiles per set, pending
//! tiles    = count varint, per tile: index (first signed varint, then gap to the previous varint), partials;
//!            per slot of distinct values: count varint, per value: scalar, place of its last tile varint
//! pending  = count varint, per event: ts i64, scalars
//! checksum = CRC-32 (IEEE) of the fingerprint and all behind it
//! ```
//!
//! Version 1 had no checksum, the distinct values of each tile where the tile's partials stand, and registers and
//! buckets by their numbers instead of the gaps between them; it is read, and written as version 2.

mod reader;

use std::collections::VecDeque;
use std::ops::Range;

use reader::Reader;

use crate::compensated::Compensated;
use crate::error::Error;
use crate::joint::{Joint, Place};
use crate::partial::Partial;
use crate::scalar::Scalar;
use crate::spec::{Spec, TileSet};
use crate::state::{Pending, State};
use crate::tiles::{Tiles, distinct_among, distinct_slots};

const VERSION: u8 = 2;
/// Without a checksum, and with the distinct values of each tile in it.
const FIRST_VERSION: u8 = 1;
/// Version and checksum.
const FRAME: usize = 5;

impl State {
    /// Appends the state's bytes to `out`.
    pub fn encode(&self, spec: &Spec, out: &mut Vec<u8>) {
        debug_assert_eq!(self.fingerprint, spec.fingerprint(), "state of another definition");
        let sets = spec.sets().iter().enumerate();
        let whole = |(set, own): (usize, _)| (own, own, Place { set, slot: 0, distinct: 0 }, i64::MIN);
        self.encode_sets(spec, self.latest_us, sets.map(whole), 0..spec.columns().len(), out);
    }

    /// Appends the bytes of one definition's part: those of a state that is read under it alone.
    pub fn encode_part(&self, joint: &Joint, part: usize, out: &mut Vec<u8>) {
        debug_assert_eq!(self.fingerprint, joint.spec().fingerprint(), "state of another definition");
        let Some(part) = joint.parts().get(part) else { return };
        let start_us = part.spec().window_start(self.now_us);
        let sets =
            part.sets().map(|(own, place)| (own, &joint.spec().sets()[place.set], place, own.first_index(self.now_us)));
        let latest_us = self.latest_us.filter(|ts_us| *ts_us >= start_us);
        self.encode_sets(part.spec(), latest_us, sets, part.columns(), out);
    }

    /// The bytes of a state of `spec`, whose sets are where they are in what is kept, from a tile each on; `columns` are its
    /// own among those of events.
    fn encode_sets<'a>(
        &self,
        spec: &Spec,
        latest_us: Option<i64>,
        sets: impl Iterator<Item = (&'a TileSet, &'a TileSet, Place, i64)>,
        columns: Range<usize>,
        out: &mut Vec<u8>,
    ) {
        let begin = out.len();
        out.push(VERSION);
        out.extend([0; FRAME - 1]);
        out.extend(spec.fingerprint().to_le_bytes());
        out.extend(self.now_us.to_le_bytes());
        match latest_us {
            None => out.push(0),
            Some(ts_us) => {
                out.push(1);
                out.extend(ts_us.to_le_bytes());
            }
        }
        for (own, kept, place, first) in sets {
            let tiles = self.sets.get(place.set);
            let from = tiles.from(first);
            varint(out, (tiles.len() - from) as u128);
            let mut previous = None;
            for at in from..tiles.len() {
                let index = tiles.index(at);
                match previous {
                    None => signed(out, i128::from(index)),
                    Some(previous) => varint(out, index.abs_diff(previous).into()),
                }
                previous = Some(index);
                for slot in place.slot..place.slot + own.slots.len() {
                    partial_out(out, &tiles.part(kept, at, slot));
                }
            }
            let distinct = place.distinct..place.distinct + distinct_among(&own.slots);
            for latest in &tiles.latest()[distinct.start.min(tiles.latest().len())..distinct.end] {
                let place = |index: &i64| tiles.position(*index).filter(|at| *at >= from);
                let kept = latest.iter().filter_map(|(value, index)| Some((value, place(index)? - from)));
                varint(out, kept.clone().count() as u128);
                for (value, place) in kept {
                    scalar_out(out, &value.0);
                    varint(out, place as u128);
                }
            }
        }
        varint(out, self.pending.len() as u128);
        for event in &self.pending {
            out.extend(event.ts_us.to_le_bytes());
            event.columns[columns.clone()].iter().for_each(|value| scalar_out(out, value));
        }
        let checksum = crc32fast::hash(&out[begin + FRAME..]);
        out[begin + 1..begin + FRAME].copy_from_slice(&checksum.to_le_bytes());
    }

    /// Reads a state that [`Self::encode`] wrote.
    ///
    /// # Errors
    /// [`Error::Version`] if another format wrote it, [`Error::Fingerprint`] if it belongs to
    /// another definition, [`Error::Corrupt`] if the bytes are no state.
    pub fn decode(spec: &Spec, bytes: &[u8]) -> Result<Self, Error> {
        let mut reader = Reader { bytes, offset: 0, gaps: bytes.first() != Some(&FIRST_VERSION) };
        match reader.byte()? {
            FIRST_VERSION => {}
            VERSION => {
                let checksum = u32::from_le_bytes(reader.array()?);
                if crc32fast::hash(&bytes[reader.offset..]) != checksum {
                    return reader.corrupt("bytes of the checksum that stands before them");
                }
            }
            found => return Err(Error::Version { expected: VERSION, found }),
        }
        let first_version = bytes[0] == FIRST_VERSION;
        let fingerprint = u64::from_le_bytes(reader.array()?);
        if fingerprint != spec.fingerprint() {
            return Err(Error::Fingerprint { expected: spec.fingerprint(), found: fingerprint });
        }
        let now_us = reader.long()?;
        let latest_us = match reader.byte()? {
            0 => None,
            1 => Some(reader.long()?),
            _ => return reader.corrupt("a flag of 0 or 1"),
        };
        if latest_us > Some(now_us) {
            return reader.corrupt("a latest event that is not after the state's time");
        }
        let mut sets = Vec::with_capacity(spec.sets().len());
        for set in spec.sets() {
            let latest_index = set.index(now_us);
            let mut tiles = Tiles::new(set);
            for _ in 0..reader.varint()? {
                let index = match tiles.last() {
                    None => i64::try_from(reader.signed()?).ok(),
                    Some(last) => {
                        let gap = u64::try_from(reader.varint()?).ok().filter(|gap| *gap > 0);
                        gap.and_then(|gap| last.checked_add_unsigned(gap))
                    }
                };
                let Some(index) = index.filter(|index| *index <= latest_index) else {
                    return reader.corrupt("ascending tiles, none after the state's time");
                };
                tiles.push(set, index);
                let mut seen: Vec<Vec<Scalar>> = Vec::new();
                for (place, (slot, empty)) in set.slots.iter().zip(&set.empty).enumerate() {
                    match empty {
                        Partial::Distinct(_) if first_version => seen.push(reader.distinct(spec, *slot)?),
                        Partial::Distinct(_) => {}
                        _ => tiles.put(set, place, reader.partial(spec, *slot, empty)?),
                    }
                }
                for (nth, ((place, _), values)) in distinct_slots(set).zip(&seen).enumerate() {
                    for value in values {
                        tiles.see(set, place, nth, value, index);
                    }
                }
            }
            if !first_version {
                for (nth, (place, _)) in distinct_slots(set).enumerate() {
                    reader.latest(spec, set, &mut tiles, place, nth)?;
                }
            }
            sets.push(tiles);
        }
        let mut pending: VecDeque<Pending> = VecDeque::new();
        for _ in 0..reader.varint()? {
            let ts_us = reader.long()?;
            if ts_us <= now_us || pending.back().is_some_and(|last| last.ts_us > ts_us) {
                return reader.corrupt("ascending events, all after the state's time");
            }
            let columns = spec.types().iter().map(|ty| reader.scalar(*ty)).collect::<Result<_, _>>()?;
            pending.push_back(Pending { ts_us, columns });
        }
        if reader.offset != bytes.len() {
            return reader.corrupt("the end of the state");
        }
        Ok(Self { fingerprint, now_us, latest_us, sets: sets.into_iter().collect(), pending })
    }
}

fn varint(out: &mut Vec<u8>, mut value: u128) {
    // nearly all numbers are small, and 128 bits are slow
    if let Ok(small) = u8::try_from(value)
        && small < 0x80
    {
        out.push(small);
        return;
    }
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn signed(out: &mut Vec<u8>, value: i128) {
    varint(out, ((value << 1) ^ (value >> 127)) as u128);
}

fn partial_out(out: &mut Vec<u8>, partial: &Partial) {
    match partial {
        Partial::Count(n) => varint(out, (*n).into()),
        Partial::SumInt(sum) => signed(out, sum.get()),
        Partial::SumFloat(sum) | Partial::Squares(sum) => compensated_out(out, *sum),
        Partial::Min(value) | Partial::Max(value) => scalar_out(out, value),
        Partial::First(found) | Partial::Last(found) => match found {
            None => scalar_out(out, &Scalar::Null),
            Some(kept) => {
                scalar_out(out, &kept.1);
                out.extend(kept.0.to_le_bytes());
            }
        },
        Partial::Earliest(found) | Partial::Latest(found) => {
            out.push(u8::from(found.is_some()));
            out.extend(found.iter().flat_map(|ts_us| ts_us.to_le_bytes()));
        }
        Partial::Moments(moments) => {
            varint(out, moments.n.into());
            if moments.n > 0 {
                moments.sums.iter().for_each(|sum| compensated_out(out, *sum));
            }
        }
        Partial::DecayedSum(decay) | Partial::DecayedCount(decay) => {
            out.push(u8::from(decay.block.is_some()));
            if let Some(block) = decay.block {
                signed(out, i128::from(block));
                compensated_out(out, decay.sum);
            }
        }
        Partial::Sessions(sessions) => {
            varint(out, sessions.list.len() as u128);
            for session in &sessions.list {
                out.extend(session.start_us.to_le_bytes());
                varint(out, session.end_us.abs_diff(session.start_us).into());
                varint(out, session.count.into());
                partial_out(out, &session.sum);
            }
        }
        Partial::Recent(recent) | Partial::Firsts(recent) => {
            varint(out, recent.values.len() as u128);
            for (ts_us, value) in &recent.values {
                out.extend(ts_us.to_le_bytes());
                scalar_out(out, value);
            }
        }
        Partial::Ranked(ranked) => {
            varint(out, ranked.values.len() as u128);
            ranked.values.iter().for_each(|value| scalar_out(out, value));
        }
        Partial::Histogram(counts) => {
            varint(out, counts.len() as u128);
            for (category, n) in counts {
                scalar_out(out, category);
                varint(out, (*n).into());
            }
        }
        // stands with the values, behind the tiles
        Partial::Distinct(_) => {}
        Partial::Registers(registers) => {
            varint(out, registers.len() as u128);
            let mut next = 0;
            for (index, rank) in registers {
                varint(out, (index - next).into());
                varint(out, (*rank).into());
                next = index + 1;
            }
        }
        Partial::Buckets(buckets) => {
            varint(out, buckets.len() as u128);
            let mut before = None;
            for (bucket, n) in buckets {
                match before {
                    None => signed(out, (*bucket).into()),
                    Some(before) => varint(out, bucket.abs_diff(before).into()),
                }
                varint(out, (*n).into());
                before = Some(*bucket);
            }
        }
    }
}

fn compensated_out(out: &mut Vec<u8>, sum: Compensated) {
    let (hi, lo, special) = sum.parts();
    let mut bytes = [special; 17];
    bytes[1..9].copy_from_slice(&hi.to_le_bytes());
    bytes[9..].copy_from_slice(&lo.to_le_bytes());
    out.extend_from_slice(&bytes);
}

fn scalar_out(out: &mut Vec<u8>, value: &Scalar) {
    match value {
        // no event carries what a function answers
        Scalar::Null | Scalar::List(_) | Scalar::Counts(_) => out.push(0),
        Scalar::Bool(value) => out.push(if *value { 2 } else { 1 }),
        Scalar::Int(value) => {
            out.push(3);
            signed(out, i128::from(*value));
        }
        Scalar::Float(value) => {
            let mut bytes = [4; 9];
            bytes[1..].copy_from_slice(&value.to_le_bytes());
            out.extend_from_slice(&bytes);
        }
        Scalar::Text(value) => {
            out.push(5);
            varint(out, value.len() as u128);
            out.extend(value.as_bytes());
        }
        Scalar::Bytes(value) => {
            out.push(6);
            varint(out, value.len() as u128);
            out.extend(value.iter());
        }
    }
}
