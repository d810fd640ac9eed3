//! Stored bytes read, number by number: never a panic, never more memory than the bytes stand for. Knows no order of
//! parts but that within one partial result.

use crate::compensated::Compensated;
use crate::error::Error;
use crate::moments::Moments;
use crate::partial::{Partial, Whole};
use crate::ranked::Ranked;
use crate::scalar::{ColumnType, Scalar};
use crate::sketch::{self, Register, is_bucket};
use crate::spec::{Slot, Spec, TileSet};
use crate::tiles::Tiles;
use crate::timed::{Decay, Recent, Session, Sessions};

pub(super) struct Reader<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) offset: usize,
    /// Registers and buckets stand by the gaps between them.
    pub(super) gaps: bool,
}

impl<'a> Reader<'a> {
    pub(super) fn corrupt<T>(&self, reason: &'static str) -> Result<T, Error> {
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

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let taken = self.take(N)?;
        taken.try_into().or_else(|_| self.corrupt("more bytes"))
    }

    pub(super) fn byte(&mut self) -> Result<u8, Error> {
        Ok(self.array::<1>()?[0])
    }

    pub(super) fn long(&mut self) -> Result<i64, Error> {
        Ok(i64::from_le_bytes(self.array()?))
    }

    fn double(&mut self) -> Result<f64, Error> {
        Ok(f64::from_le_bytes(self.array()?))
    }

    pub(super) fn varint(&mut self) -> Result<u128, Error> {
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

    pub(super) fn signed(&mut self) -> Result<i128, Error> {
        let value = self.varint()?;
        Ok((value >> 1) as i128 ^ -((value & 1) as i128))
    }

    fn sized(&mut self) -> Result<&'a [u8], Error> {
        let count = self.varint()?;
        // a length beyond usize is beyond the bytes, too
        self.take(usize::try_from(count).unwrap_or(usize::MAX))
    }

    /// A value that a column of the type admits.
    pub(super) fn scalar(&mut self, ty: ColumnType) -> Result<Scalar, Error> {
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
    pub(super) fn partial(&mut self, spec: &Spec, slot: Slot, like: &Partial) -> Result<Partial, Error> {
        let ty = type_of(spec, slot);
        Ok(match like {
            Partial::Count(_) => Partial::Count(self.count()?),
            Partial::SumInt(_) => Partial::SumInt(Whole::new(self.signed()?)),
            Partial::SumFloat(_) => Partial::SumFloat(self.compensated()?),
            Partial::Squares(_) => Partial::Squares(self.compensated()?),
            Partial::Min(_) => Partial::Min(self.scalar(ty)?),
            Partial::Max(_) => Partial::Max(self.scalar(ty)?),
            Partial::First(_) => Partial::First(self.timed(ty)?.map(Box::new)),
            Partial::Last(_) => Partial::Last(self.timed(ty)?.map(Box::new)),
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
            Partial::DecayedSum(like) => Partial::DecayedSum(Box::new(self.decay(like)?)),
            Partial::DecayedCount(like) => Partial::DecayedCount(Box::new(self.decay(like)?)),
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
                Partial::Sessions(Box::new(Sessions { list, gap_us: like.gap_us, zero: like.zero.clone() }))
            }
            Partial::Recent(like) => Partial::Recent(Box::new(self.recent(ty, like)?)),
            Partial::Firsts(like) => Partial::Firsts(Box::new(self.recent(ty, like)?)),
            Partial::Ranked(like) => {
                let mut ranked = Ranked { values: Vec::new(), k: like.k, first: like.first };
                for _ in 0..self.varint()? {
                    ranked.values.push(self.value(ty)?);
                    if !ranked.holds() {
                        return self.corrupt("values in order, no more than are kept");
                    }
                }
                Partial::Ranked(Box::new(ranked))
            }
            Partial::Histogram(_) => {
                let mut counts: Vec<(Scalar, u64)> = Vec::new();
                for _ in 0..self.varint()? {
                    let (category, n) = (self.value(ty)?, self.count()?);
                    if n == 0 || counts.last().is_some_and(|(last, _)| !last.order(&category).is_lt()) {
                        return self.corrupt("ascending categories, none without a count");
                    }
                    counts.push((category, n));
                }
                Partial::Histogram(counts)
            }
            Partial::Distinct(n) => Partial::Distinct(*n),
            Partial::Registers(_) => {
                let mut registers: Vec<Register> = Vec::new();
                for _ in 0..self.varint()? {
                    let next = registers.last().map_or(0, |(last, _)| u128::from(*last) + 1);
                    let index = self.varint()?.saturating_add(if self.gaps { next } else { 0 });
                    match (u16::try_from(index), u8::try_from(self.varint()?)) {
                        (Ok(index), Ok(rank @ 1..=53))
                            if index < 4096 && registers.last().is_none_or(|(last, _)| *last < index) =>
                        {
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
                    let bucket = match buckets.last() {
                        Some((last, _)) if self.gaps => {
                            i128::from(*last).saturating_add(i128::try_from(self.varint()?).unwrap_or(i128::MAX))
                        }
                        _ => self.signed()?,
                    };
                    let n = self.count()?;
                    match i32::try_from(bucket) {
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

    fn recent(&mut self, ty: ColumnType, like: &Recent) -> Result<Recent, Error> {
        let mut values: Vec<(i64, Scalar)> = Vec::new();
        for _ in 0..self.varint()? {
            let (ts_us, value) = (self.long()?, self.scalar(ty)?);
            if values.len() == like.k || values.last().is_some_and(|(last, _)| *last > ts_us) {
                return self.corrupt("ascending values, no more than are kept");
            }
            values.push((ts_us, value));
        }
        Ok(Recent { k: like.k, values })
    }

    /// A value that is not null.
    fn value(&mut self, ty: ColumnType) -> Result<Scalar, Error> {
        match self.scalar(ty)? {
            Scalar::Null => self.corrupt("a value"),
            value => Ok(value),
        }
    }

    /// The distinct values of one tile, as version 1 has them.
    pub(super) fn distinct(&mut self, spec: &Spec, slot: Slot) -> Result<Vec<Scalar>, Error> {
        let mut set: Vec<Scalar> = Vec::new();
        for _ in 0..self.varint()? {
            let value = self.value(type_of(spec, slot))?;
            if set.last().is_some_and(|last| !last.order(&value).is_lt()) {
                return self.corrupt("ascending values, none twice");
            }
            set.push(value);
        }
        Ok(set)
    }

    /// The distinct values of a slot, each with the tile that it was last seen in, into the tiles.
    pub(super) fn latest(
        &mut self,
        spec: &Spec,
        set: &TileSet,
        tiles: &mut Tiles,
        place: usize,
        nth: usize,
    ) -> Result<(), Error> {
        let mut before: Option<Scalar> = None;
        let ty = type_of(spec, set.slots[place]);
        for _ in 0..self.varint()? {
            let value = self.value(ty)?;
            let tile = usize::try_from(self.varint()?).ok().filter(|at| *at < tiles.len()).map(|at| tiles.index(at));
            let ascends = before.is_none_or(|before| before.order(&value).is_lt());
            // zeros of one sign, one NaN: what no writer writes would count twice
            let usual = sketch::canonical(&value).order(&value).is_eq();
            let Some(index) = tile.filter(|_| ascends && usual) else {
                return self.corrupt("ascending values, each with one of the tiles");
            };
            tiles.see(set, place, nth, &value, index);
            before = Some(value);
        }
        Ok(())
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

/// The type of a slot's column.
fn type_of(spec: &Spec, slot: Slot) -> ColumnType {
    slot.column.map_or(ColumnType::Other, |i| spec.types()[i])
}
