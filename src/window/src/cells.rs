//! How the partial results of a tile stand in memory: what is of a fixed size as words, side by side, so that an event
//! changes one short piece of memory; the rest as it is. Knows no tiles.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::VecDeque;

use crate::compensated::Compensated;
use crate::partial::{Partial, PartialKind, Whole};
use crate::scalar::{ColumnType, Scalar};
use crate::spec::Slot;

/// In place of a double that is not there: a NaN that no computation gives.
const NONE: u64 = 0x7ff4_0000_006e_6f6e;

/// What stands where, in a tile of one tile set.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    cells: Box<[Cell]>,
    /// A tile of no value; the first word is its index.
    empty: Box<[u64]>,
    /// The partial results that are kept as they are, of no value.
    apart: Box<[Partial]>,
}

/// Where a slot's partial result stands, and as what.
#[derive(Clone, Copy, Debug)]
struct Cell {
    form: Form,
    /// The first of its words, or its place among what is kept apart.
    at: usize,
}

/// What the words of a cell are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// One: how many.
    Count,
    /// One, as above; whoever has the tiles counts.
    Distinct,
    /// Two: the high half, the low one.
    Whole,
    /// Three: the parts of a [`Compensated`].
    Sum,
    Squares,
    /// One: a double, or [`NONE`].
    LeastFloat,
    GreatestFloat,
    /// Two: whether there is one, an integer.
    LeastInt,
    GreatestInt,
    /// Two: whether there is one, a time.
    Earliest,
    Latest,
    /// Two: a double or [`NONE`], its time.
    FirstFloat,
    LastFloat,
    /// Three: whether there is one, an integer, its time.
    FirstInt,
    LastInt,
    /// None: it is kept apart.
    Apart,
}

impl Form {
    fn of(slot: Slot, ty: ColumnType) -> Self {
        use ColumnType::{Float, Int, Timestamp};
        match (slot.kind, ty) {
            (PartialKind::Count, _) => Self::Count,
            (PartialKind::Distinct, _) => Self::Distinct,
            (PartialKind::Sum, Float) => Self::Sum,
            (PartialKind::Sum, _) => Self::Whole,
            (PartialKind::Squares, _) => Self::Squares,
            (PartialKind::Min, Float) => Self::LeastFloat,
            (PartialKind::Max, Float) => Self::GreatestFloat,
            (PartialKind::Min, Int | Timestamp) => Self::LeastInt,
            (PartialKind::Max, Int | Timestamp) => Self::GreatestInt,
            (PartialKind::Earliest, _) => Self::Earliest,
            (PartialKind::Latest, _) => Self::Latest,
            (PartialKind::First, Float) => Self::FirstFloat,
            (PartialKind::Last, Float) => Self::LastFloat,
            (PartialKind::First, Int | Timestamp) => Self::FirstInt,
            (PartialKind::Last, Int | Timestamp) => Self::LastInt,
            _ => Self::Apart,
        }
    }

    /// Its words where it has no value.
    fn empty(self) -> &'static [u64] {
        match self {
            Self::Count | Self::Distinct => &[0],
            Self::Whole | Self::LeastInt | Self::GreatestInt | Self::Earliest | Self::Latest => &[0, 0],
            Self::LeastFloat | Self::GreatestFloat => &[NONE],
            Self::FirstFloat | Self::LastFloat => &[NONE, 0],
            Self::Sum | Self::Squares | Self::FirstInt | Self::LastInt => &[0, 0, 0],
            Self::Apart => &[],
        }
    }

    /// Takes a value that is not null, of the column's type.
    fn add(self, words: &mut [u64], ts_us: i64, value: &Scalar) {
        match (self, value) {
            (Self::Count, _) => words[0] = words[0].saturating_add(1),
            (Self::Whole, Scalar::Int(x)) => {
                put_whole(words, whole(words).saturating_add(i128::from(*x)));
            }
            (Self::Sum, Scalar::Float(x)) => {
                let mut sum = sum(words);
                sum.add(*x);
                put_sum(words, sum);
            }
            (Self::Squares, _) => {
                let mut partial = Partial::Squares(sum(words));
                partial.add(ts_us, value);
                self.put(words, &partial);
            }
            (Self::LeastFloat, Scalar::Float(x)) if is_less(*x, words[0]) => words[0] = double(*x),
            (Self::GreatestFloat, Scalar::Float(x)) if is_greater(*x, words[0]) => words[0] = double(*x),
            (Self::LeastInt, Scalar::Int(x)) if words[0] == 0 || *x < words[1] as i64 => {
                words[..2].copy_from_slice(&[1, *x as u64]);
            }
            (Self::GreatestInt, Scalar::Int(x)) if words[0] == 0 || *x > words[1] as i64 => {
                words[..2].copy_from_slice(&[1, *x as u64]);
            }
            (Self::Earliest, _) if words[0] == 0 || ts_us < words[1] as i64 => {
                words[..2].copy_from_slice(&[1, ts_us as u64]);
            }
            (Self::Latest, _) if words[0] == 0 || ts_us > words[1] as i64 => {
                words[..2].copy_from_slice(&[1, ts_us as u64]);
            }
            (Self::FirstFloat, Scalar::Float(x)) if words[0] == NONE || ts_us < words[1] as i64 => {
                words[..2].copy_from_slice(&[double(*x), ts_us as u64]);
            }
            (Self::LastFloat, Scalar::Float(x)) if words[0] == NONE || ts_us >= words[1] as i64 => {
                words[..2].copy_from_slice(&[double(*x), ts_us as u64]);
            }
            (Self::FirstInt, Scalar::Int(x)) if words[0] == 0 || ts_us < words[2] as i64 => {
                words[..3].copy_from_slice(&[1, *x as u64, ts_us as u64]);
            }
            (Self::LastInt, Scalar::Int(x)) if words[0] == 0 || ts_us >= words[2] as i64 => {
                words[..3].copy_from_slice(&[1, *x as u64, ts_us as u64]);
            }
            // no better than what is there, counted elsewhere, or of a type that a checked column does not have
            _ => {}
        }
    }

    /// The partial result that the words are.
    fn get(self, words: &[u64]) -> Partial {
        let float = || if words[0] == NONE { Scalar::Null } else { Scalar::Float(f64::from_bits(words[0])) };
        let int = || if words[0] == 0 { Scalar::Null } else { Scalar::Int(words[1] as i64) };
        let time = || (words[0] != 0).then_some(words[1] as i64);
        let float_at = || (words[0] != NONE).then(|| Box::new((words[1] as i64, float())));
        let int_at = || (words[0] != 0).then(|| Box::new((words[2] as i64, int())));
        match self {
            Self::Count => Partial::Count(words[0]),
            Self::Distinct | Self::Apart => Partial::Distinct(words.first().copied().unwrap_or_default()),
            Self::Whole => Partial::SumInt(Whole::new(whole(words))),
            Self::Sum => Partial::SumFloat(sum(words)),
            Self::Squares => Partial::Squares(sum(words)),
            Self::LeastFloat => Partial::Min(float()),
            Self::GreatestFloat => Partial::Max(float()),
            Self::LeastInt => Partial::Min(int()),
            Self::GreatestInt => Partial::Max(int()),
            Self::Earliest => Partial::Earliest(time()),
            Self::Latest => Partial::Latest(time()),
            Self::FirstFloat => Partial::First(float_at()),
            Self::LastFloat => Partial::Last(float_at()),
            Self::FirstInt => Partial::First(int_at()),
            Self::LastInt => Partial::Last(int_at()),
        }
    }

    /// Writes a partial result down, in words that stand for none.
    fn put(self, words: &mut [u64], partial: &Partial) {
        match partial {
            Partial::Count(n) | Partial::Distinct(n) => words[0] = *n,
            Partial::SumInt(sum) => put_whole(words, sum.get()),
            Partial::SumFloat(sum) | Partial::Squares(sum) => put_sum(words, *sum),
            Partial::Min(value) | Partial::Max(value) if !value.is_null() => self.add(words, 0, value),
            Partial::Earliest(Some(ts_us)) | Partial::Latest(Some(ts_us)) => self.add(words, *ts_us, &Scalar::Null),
            Partial::First(Some(kept)) | Partial::Last(Some(kept)) => self.add(words, kept.0, &kept.1),
            _ => {}
        }
    }
}

impl Layout {
    /// Of a tile set's slots, each with a partial result of no value.
    pub(crate) fn new(slots: &[Slot], types: &[ColumnType], empty: &[Partial]) -> Self {
        let (mut words, mut apart) = (vec![0], Vec::new());
        let cell = |(slot, empty): (&Slot, &Partial)| {
            let form = Form::of(*slot, slot.column.map_or(ColumnType::Other, |column| types[column]));
            let at = if form == Form::Apart { apart.len() } else { words.len() };
            if form == Form::Apart {
                apart.push(empty.clone());
            }
            words.extend(form.empty());
            Cell { form, at }
        };
        let cells = slots.iter().zip(empty).map(cell).collect();
        Self { cells, empty: words.into(), apart: apart.into() }
    }

    /// The words of a tile of no value.
    pub(crate) fn words(&self) -> &[u64] {
        &self.empty
    }

    /// What a tile of no value keeps apart.
    pub(crate) fn apart(&self) -> &[Partial] {
        &self.apart
    }

    /// Enters an event into a tile: its words, and what it keeps apart from that place on.
    pub(crate) fn add(
        &self,
        slots: &[Slot],
        words: &mut [u64],
        (apart, from): (&mut VecDeque<Partial>, usize),
        event: (i64, &[Scalar], &[ColumnType]),
    ) {
        let (ts_us, columns, types) = event;
        for (slot, cell) in slots.iter().zip(&*self.cells) {
            let float;
            let value = match slot.column.map(|column| (&columns[column], types[column])) {
                None => &Scalar::Null,
                Some((Scalar::Null, _)) => continue,
                Some((Scalar::Int(x), ColumnType::Float)) => {
                    float = Scalar::Float(*x as f64);
                    &float
                }
                Some((value, _)) => value,
            };
            match cell.form {
                Form::Apart => apart[from + cell.at].add(ts_us, value),
                form => form.add(&mut words[cell.at..], ts_us, value),
            }
        }
    }

    /// A slot's partial result in a tile.
    pub(crate) fn get<'a>(
        &self,
        slot: usize,
        words: &[u64],
        apart: &'a VecDeque<Partial>,
        from: usize,
    ) -> Cow<'a, Partial> {
        let cell = self.cells[slot];
        match cell.form {
            Form::Apart => Cow::Borrowed(&apart[from + cell.at]),
            form => Cow::Owned(form.get(&words[cell.at..])),
        }
    }

    /// The place of a slot's partial result among those that a tile keeps apart.
    pub(crate) fn place_apart(&self, slot: usize) -> Option<usize> {
        let cell = self.cells[slot];
        (cell.form == Form::Apart).then_some(cell.at)
    }

    /// The word of a slot of distinct values.
    pub(crate) fn distinct<'a>(&self, slot: usize, words: &'a mut [u64]) -> Option<&'a mut u64> {
        let cell = self.cells[slot];
        if cell.form == Form::Distinct { words.get_mut(cell.at) } else { None }
    }

    /// Puts a slot's partial result into a tile of no value.
    pub(crate) fn put(
        &self,
        slot: usize,
        words: &mut [u64],
        (apart, from): (&mut VecDeque<Partial>, usize),
        partial: Partial,
    ) {
        let cell = self.cells[slot];
        match cell.form {
            Form::Apart => apart[from + cell.at] = partial,
            form => form.put(&mut words[cell.at..], &partial),
        }
    }
}

fn whole(words: &[u64]) -> i128 {
    i128::from(words[0] as i64) << 64 | i128::from(words[1])
}

fn put_whole(words: &mut [u64], sum: i128) {
    words[..2].copy_from_slice(&[(sum >> 64) as u64, sum as u64]);
}

fn sum(words: &[u64]) -> Compensated {
    Compensated::from_words([words[0], words[1], words[2]])
}

fn put_sum(words: &mut [u64], sum: Compensated) {
    words[..3].copy_from_slice(&sum.words());
}

/// A double as a word that is not [`NONE`].
fn double(x: f64) -> u64 {
    if x.to_bits() == NONE { f64::NAN.to_bits() } else { x.to_bits() }
}

/// Whether it comes before what a word is, in the order of [`Scalar::order`]; everything comes before nothing.
fn is_less(x: f64, than: u64) -> bool {
    than == NONE || order(x, f64::from_bits(than)).is_lt()
}

/// Whether it comes behind; everything comes behind nothing.
fn is_greater(x: f64, than: u64) -> bool {
    than == NONE || order(x, f64::from_bits(than)).is_gt()
}

fn order(x: f64, y: f64) -> Ordering {
    match x.partial_cmp(&y) {
        Some(order @ (Ordering::Less | Ordering::Greater)) => order,
        // zeros have signs, and there are those that are no numbers
        _ => Scalar::Float(x).order(&Scalar::Float(y)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KINDS: [PartialKind; 11] = [
        PartialKind::Count,
        PartialKind::Sum,
        PartialKind::Squares,
        PartialKind::Min,
        PartialKind::Max,
        PartialKind::First,
        PartialKind::Last,
        PartialKind::Earliest,
        PartialKind::Latest,
        PartialKind::Moments,
        PartialKind::Buckets,
    ];

    fn float() -> impl Strategy<Value = Scalar> {
        let odd = [f64::NAN, -f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 0.0, -0.0, f64::MAX, f64::from_bits(NONE)];
        prop_oneof![
            4 => (-1e6..1e6f64).prop_map(Scalar::Float),
            2 => prop::sample::select(odd.to_vec()).prop_map(Scalar::Float),
            1 => any::<i64>().prop_map(Scalar::Int),
            1 => Just(Scalar::Null),
        ]
    }

    fn int() -> impl Strategy<Value = Scalar> {
        prop_oneof![4 => any::<i64>().prop_map(Scalar::Int), 1 => Just(Scalar::Int(0)), 1 => Just(Scalar::Null)]
    }

    /// The same but for which NaN it is.
    fn shown(partial: &Partial) -> String {
        format!("{partial:?}").replace("-NaN", "NaN")
    }

    fn check(ty: ColumnType, events: &[(i64, Scalar)]) {
        let slots: Vec<Slot> = KINDS.iter().map(|kind| Slot { column: Some(0), kind: *kind, parameter: 0 }).collect();
        let empty: Vec<Partial> = slots.iter().map(|slot| Partial::empty(slot.kind, 0, ty)).collect();
        let layout = Layout::new(&slots, &[ty], &empty);
        let mut expected = empty.clone();
        let (mut words, mut apart) = (layout.words().to_vec(), VecDeque::from(layout.apart().to_vec()));
        for (ts_us, value) in events {
            let columns = [value.clone()];
            layout.add(&slots, &mut words, (&mut apart, 0), (*ts_us, &columns, &[ty]));
            for partial in &mut expected {
                crate::tiles::add_to(partial, Some(0), &[ty], *ts_us, &columns);
            }
        }
        let (mut again, mut apart_again) = (layout.words().to_vec(), VecDeque::from(layout.apart().to_vec()));
        for (slot, expected) in expected.iter().enumerate() {
            let found = layout.get(slot, &words, &apart, 0);
            assert_eq!(shown(&found), shown(expected), "{:?} of {ty:?}", slots[slot].kind);
            layout.put(slot, &mut again, (&mut apart_again, 0), found.into_owned());
        }
        assert_eq!(again, words, "what is put in is what was taken out");
        assert_eq!(format!("{apart_again:?}"), format!("{apart:?}"));
    }

    proptest! {
        #[test]
        fn words_are_what_partial_results_are(
            floats in prop::collection::vec((0..20i64, float()), 0..30),
            ints in prop::collection::vec((0..20i64, int()), 0..30),
        ) {
            check(ColumnType::Float, &floats);
            check(ColumnType::Int, &ints);
            check(ColumnType::Timestamp, &ints);
        }
    }
}
