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
use crate::partial::Partial;
use crate::scalar::{ColumnType, Scalar};
use crate::spec::{Slot, Spec};
use crate::state::{Pending, State, Tile};

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
        Partial::SumFloat(sum) | Partial::Squares(sum) => {
            let (hi, lo, special) = sum.parts();
            out.push(special);
            out.extend(hi.to_le_bytes());
            out.extend(lo.to_le_bytes());
        }
        Partial::Min(value) | Partial::Max(value) => scalar_out(out, value),
        Partial::First(found) | Partial::Last(found) => match found {
            None => scalar_out(out, &Scalar::Null),
            Some((ts_us, value)) => {
                scalar_out(out, value);
                out.extend(ts_us.to_le_bytes());
            }
        },
    }
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
            Partial::Count(_) => match u64::try_from(self.varint()?) {
                Ok(n) => Partial::Count(n),
                Err(_) => return self.corrupt("a count of at most 64 bits"),
            },
            Partial::SumInt(_) => Partial::SumInt(self.signed()?),
            Partial::SumFloat(_) => Partial::SumFloat(self.compensated()?),
            Partial::Squares(_) => Partial::Squares(self.compensated()?),
            Partial::Min(_) => Partial::Min(self.scalar(ty)?),
            Partial::Max(_) => Partial::Max(self.scalar(ty)?),
            Partial::First(_) => Partial::First(self.timed(ty)?),
            Partial::Last(_) => Partial::Last(self.timed(ty)?),
        })
    }

    fn timed(&mut self, ty: ColumnType) -> Result<Option<(i64, Scalar)>, Error> {
        match self.scalar(ty)? {
            Scalar::Null => Ok(None),
            value => Ok(Some((self.long()?, value))),
        }
    }
}
