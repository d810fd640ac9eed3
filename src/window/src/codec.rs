//! The bytes of a [`State`], for a store to keep: version, fingerprint, tiles, pending events.
//! Decoding takes any bytes and never panics. Knows no store; checksums are the store's.
//!
//! All fixed-width numbers are little-endian. A varint is LEB128; a signed one is zigzag first.
//!
//! ```text
//! state   = version u8, fingerprint u64, now i64, latest (u8 0 | u8 1, i64), tiles per set, pending
//! tiles   = count varint, per tile: index (first signed varint, then gap to the previous varint), partials
//! pending = count varint, per event: ts i64, scalars
//! ```

use std::collections::VecDeque;

use crate::compensated::Compensated;
use crate::error::Error;
use crate::moments::Moments;
use crate::partial::Partial;
use crate::scalar::{ColumnType, Scalar};
use crate::sketch::is_bucket;
use crate::spec::{Slot, Spec};
use crate::state::{Pending, State, Tile};
use crate::timed::{Decay, Recent, Session, Sessions};

const VERSION: u8 = 1;

impl State {
    /// Appends the state's bytes to `out`.
    pub fn encode(&self, spec: &Spec, out: &mut Vec<u8>) {
        debug_assert_eq!(self.fingerprint, spec.fingerprint(), "state of another definition");
        out.push(VERSION);
        out.extend(self.fingerprint.to_le_bytes());
        out.extend(self.now_us.to_le_bytes());
        match self.latest_us {
            None => out.push(0),
            Some(ts_us) => {
                out.push(1);
                out.extend(ts_us.to_le_bytes());
            }
        }
        for tiles in &self.sets {
            varint(out, tiles.len() as u128);
            let mut previous = None;
            for tile in tiles {
                match previous {
                    None => signed(out, i128::from(tile.index)),
                    Some(index) => varint(out, tile.index.abs_diff(index).into()),
                }
                previous = Some(tile.index);
                tile.partials.iter().for_each(|partial| partial_out(out, partial));
            }
        }
        varint(out, self.pending.len() as u128);
        for event in &self.pending {
            out.extend(event.ts_us.to_le_bytes());
            event.columns.iter().for_each(|value| scalar_out(out, value));
        }
    }

    /// Reads a state that [`Self::encode`] wrote.
    ///
    /// # Errors
    /// [`Error::Version`] if another format wrote it, [`Error::Fingerprint`] if it belongs to
    /// another definition, [`Error::Corrupt`] if the bytes are no state.
    pub fn decode(spec: &Spec, bytes: &[u8]) -> Result<Self, Error> {
        let mut reader = Reader { bytes, offset: 0 };
        let version = reader.byte()?;
        if version != VERSION {
            return Err(Error::Version { expected: VERSION, found: version });
        }
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
            let mut tiles: VecDeque<Tile> = VecDeque::new();
            for _ in 0..reader.varint()? {
                let index = match tiles.back() {
                    None => i64::try_from(reader.signed()?).ok(),
                    Some(last) => {
                        let gap = u64::try_from(reader.varint()?).ok().filter(|gap| *gap > 0);
                        gap.and_then(|gap| last.index.checked_add_unsigned(gap))
                    }
                };
                let Some(index) = index.filter(|index| *index <= latest_index) else {
                    return reader.corrupt("ascending tiles, none after the state's time");
                };
                let partials = set.slots.iter().zip(&set.empty).map(|(slot, empty)| reader.partial(spec, *slot, empty));
                tiles.push_back(Tile { index, partials: partials.collect::<Result<_, _>>()? });
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
        Ok(Self { fingerprint, now_us, latest_us, sets, pending })
    }
}

fn varint(out: &mut Vec<u8>, mut value: u128) {
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
        Partial::SumInt(sum) => signed(out, *sum),
        Partial::SumFloat(sum) | Partial::Squares(sum) => compensated_out(out, *sum),
        Partial::Min(value) | Partial::Max(value) => scalar_out(out, value),
        Partial::First(found) | Partial::Last(found) => match found {
            None => scalar_out(out, &Scalar::Null),
            Some((ts_us, value)) => {
                scalar_out(out, value);
                out.extend(ts_us.to_le_bytes());
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
        Partial::Recent(recent) => {
            varint(out, recent.values.len() as u128);
            for (ts_us, value) in &recent.values {
                out.extend(ts_us.to_le_bytes());
                scalar_out(out, value);
            }
        }
        Partial::Distinct(set) => {
            varint(out, set.len() as u128);
            for value in set {
                scalar_out(out, value);
            }
        }
        Partial::Registers(registers) => {
            varint(out, registers.len() as u128);
            for (index, rank) in registers {
                varint(out, (*index).into());
                varint(out, (*rank).into());
            }
        }
        Partial::Buckets(buckets) => {
            varint(out, buckets.len() as u128);
            for (bucket, n) in buckets {
                signed(out, (*bucket).into());
                varint(out, (*n).into());
            }
        }
    }
}

fn compensated_out(out: &mut Vec<u8>, sum: Compensated) {
    let (hi, lo, special) = sum.parts();
    out.push(special);
    out.extend(hi.to_le_bytes());
    out.extend(lo.to_le_bytes());
}

fn scalar_out(out: &mut Vec<u8>, value: &Scalar) {
    match value {
        Scalar::Null => out.push(0),
        Scalar::Bool(value) => out.push(if *value { 2 } else { 1 }),
        Scalar::Int(value) => {
            out.push(3);
            signed(out, i128::from(*value));
        }
        Scalar::Float(value) => {
            out.push(4);
            out.extend(value.to_le_bytes());
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

struct Reader<'a> {
    bytes: &'a [u8],
    offset: usize,
}

impl<'a> Reader<'a> {
    fn corrupt<T>(&self, reason: &'static str) -> Result<T, Error> {
        Err(Error::Corrupt { offset: self.offset, reason })
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], Error> {
        match self.bytes[self.offset..].get(..count) {
            Some(taken) => {
                self.offset += count;
                Ok(taken)
            }
            None => self.corrupt("more bytes"),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let taken = self.take(N)?;
        taken.try_into().or_else(|_| self.corrupt("more bytes"))
    }

    fn byte(&mut self) -> Result<u8, Error> {
        Ok(self.array::<1>()?[0])
    }

    fn long(&mut self) -> Result<i64, Error> {
        Ok(i64::from_le_bytes(self.array()?))
    }

    fn double(&mut self) -> Result<f64, Error> {
        Ok(f64::from_le_bytes(self.array()?))
    }

    fn varint(&mut self) -> Result<u128, Error> {
        let mut value = 0u128;
        for shift in (0..128).step_by(7) {
            let byte = self.byte()?;
            let bits = u128::from(byte & 0x7f);
            if bits << shift >> shift != bits {
                break;
            }
            value |= bits << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        self.corrupt("a number of at most 128 bits")
    }

    fn signed(&mut self) -> Result<i128, Error> {
        let value = self.varint()?;
        Ok((value >> 1) as i128 ^ -((value & 1) as i128))
    }

    fn sized(&mut self) -> Result<&'a [u8], Error> {
        let count = self.varint()?;
        // a length beyond usize is beyond the bytes, too
        self.take(usize::try_from(count).unwrap_or(usize::MAX))
    }

    /// A value that a column of the type admits.
    fn scalar(&mut self, ty: ColumnType) -> Result<Scalar, Error> {
        let value = match self.byte()? {
            0 => Scalar::Null,
            tag @ 1..=2 => Scalar::Bool(tag == 2),
            3 => match i64::try_from(self.signed()?) {
                Ok(value) => Scalar::Int(value),
                Err(_) => return self.corrupt("an integer of at most 64 bits"),
            },
            4 => Scalar::Float(self.double()?),
            5 => match std::str::from_utf8(self.sized()?) {
                Ok(text) => Scalar::Text(text.into()),
                Err(_) => return self.corrupt("text in UTF-8"),
            },
            6 => Scalar::Bytes(self.sized()?.into()),
            _ => return self.corrupt("the tag of a value"),
        };
        if !ty.admits(&value) {
            return self.corrupt("a value of the column's type");
        }
        Ok(value)
    }

    fn compensated(&mut self) -> Result<Compensated, Error> {
        let special = self.byte()?;
        let (hi, lo) = (self.double()?, self.double()?);
        Compensated::from_parts(hi, lo, special).map_or_else(|| self.corrupt("a sum"), Ok)
    }

    /// A partial result of the same kind as `like`.
    fn partial(&mut self, spec: &Spec, slot: Slot, like: &Partial) -> Result<Partial, Error> {
        let ty = slot.column.map_or(ColumnType::Other, |i| spec.types()[i]);
        Ok(match like {
            Partial::Count(_) => Partial::Count(self.count()?),
            Partial::SumInt(_) => Partial::SumInt(self.signed()?),
            Partial::SumFloat(_) => Partial::SumFloat(self.compensated()?),
            Partial::Squares(_) => Partial::Squares(self.compensated()?),
            Partial::Min(_) => Partial::Min(self.scalar(ty)?),
            Partial::Max(_) => Partial::Max(self.scalar(ty)?),
            Partial::First(_) => Partial::First(self.timed(ty)?),
            Partial::Last(_) => Partial::Last(self.timed(ty)?),
            Partial::Earliest(_) => Partial::Earliest(self.optional(Self::long)?),
            Partial::Latest(_) => Partial::Latest(self.optional(Self::long)?),
            Partial::Moments(_) => {
                let n = self.count()?;
                let mut sums = [Compensated::default(); 4];
                if n > 0 {
                    for sum in &mut sums {
                        *sum = self.compensated()?;
                    }
                }
                Partial::Moments(Box::new(Moments { n, sums }))
            }
            Partial::DecayedSum(like) => Partial::DecayedSum(self.decay(like)?),
            Partial::DecayedCount(like) => Partial::DecayedCount(self.decay(like)?),
            Partial::Sessions(like) => {
                let mut list: Vec<Session> = Vec::new();
                for _ in 0..self.varint()? {
                    let start_us = self.long()?;
                    let end_us = start_us.checked_add_unsigned(self.count()?);
                    let (count, sum) = (self.count()?, self.partial(spec, slot, &like.zero)?);
                    let apart = |last: &Session| i128::from(start_us) - i128::from(last.end_us) > like.gap_us.into();
                    match end_us.filter(|_| list.last().is_none_or(apart)) {
                        Some(end_us) => list.push(Session { start_us, end_us, count, sum }),
                        None => return self.corrupt("ascending sessions, apart by their gap"),
                    }
                }
                Partial::Sessions(Sessions { list, ..like.clone() })
            }
            Partial::Recent(like) => {
                let mut values: Vec<(i64, Scalar)> = Vec::new();
                for _ in 0..self.varint()? {
                    let (ts_us, value) = (self.long()?, self.scalar(ty)?);
                    if values.len() == like.k || values.last().is_some_and(|(last, _)| *last > ts_us) {
                        return self.corrupt("ascending values, no more than are kept");
                    }
                    values.push((ts_us, value));
                }
                Partial::Recent(Recent { k: like.k, values })
            }
            Partial::Distinct(_) => {
                let mut set: Vec<Scalar> = Vec::new();
                for _ in 0..self.varint()? {
                    let value = self.scalar(ty)?;
                    if value.is_null() || set.last().is_some_and(|last| !last.order(&value).is_lt()) {
                        return self.corrupt("ascending values, none twice");
                    }
                    set.push(value);
                }
                Partial::Distinct(set)
            }
            Partial::Registers(_) => {
                let mut registers: Vec<(u32, u64)> = Vec::new();
                for _ in 0..self.varint()? {
                    let (index, rank) = (self.varint()?, self.count()?);
                    let known = registers.last().map_or(-1, |(last, _)| i128::from(*last));
                    match u32::try_from(index) {
                        Ok(index) if index < 4096 && i128::from(index) > known && (1..=53).contains(&rank) => {
                            registers.push((index, rank));
                        }
                        _ => return self.corrupt("ascending registers"),
                    }
                }
                Partial::Registers(registers)
            }
            Partial::Buckets(_) => {
                let mut buckets: Vec<(i32, u64)> = Vec::new();
                for _ in 0..self.varint()? {
                    let (bucket, n) = (i32::try_from(self.signed()?), self.count()?);
                    match bucket {
                        Ok(bucket)
                            if is_bucket(bucket) && n > 0 && buckets.last().is_none_or(|(last, _)| *last < bucket) =>
                        {
                            buckets.push((bucket, n));
                        }
                        _ => return self.corrupt("ascending buckets"),
                    }
                }
                Partial::Buckets(buckets)
            }
        })
    }

    fn count(&mut self) -> Result<u64, Error> {
        let n = self.varint()?;
        u64::try_from(n).or_else(|_| self.corrupt("a count of at most 64 bits"))
    }

    fn optional<T>(&mut self, read: impl Fn(&mut Self) -> Result<T, Error>) -> Result<Option<T>, Error> {
        match self.byte()? {
            0 => Ok(None),
            1 => read(self).map(Some),
            _ => self.corrupt("a flag of 0 or 1"),
        }
    }

    fn decay(&mut self, like: &Decay) -> Result<Decay, Error> {
        let read = |reader: &mut Self| Ok((reader.signed()?, reader.compensated()?));
        let Some((block, sum)) = self.optional(read)? else { return Ok(like.clone()) };
        match i64::try_from(block) {
            Ok(block) => Ok(Decay { half_life_us: like.half_life_us, block: Some(block), sum }),
            Err(_) => self.corrupt("a time of at most 64 bits"),
        }
    }

    fn timed(&mut self, ty: ColumnType) -> Result<Option<(i64, Scalar)>, Error> {
        match self.scalar(ty)? {
            Scalar::Null => Ok(None),
            value => Ok(Some((self.long()?, value))),
        }
    }
}
