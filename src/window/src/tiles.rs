//! The tiles of one tile set of one entity: finest tiles, blocks of them merged beforehand so that a long window is
//! read in few steps, and where each distinct value was seen last. Knows no clock and no bytes.

use std::cmp::Ordering;
use std::collections::{BTreeMap, VecDeque, btree_map};

use crate::partial::{Partial, PartialKind};
use crate::scalar::{ColumnType, Scalar};
use crate::sketch;
use crate::spec::{Slot, TileSet};

/// How many tiles a block spans: a window of 720 tiles is then read in about 55 steps.
const BLOCK: i64 = 32;
/// Registers that no window can show are dropped when the last tile has gone on by so many.
const PRUNE: i64 = 8;

/// The tiles of a span, merged.
#[derive(Clone, Debug)]
struct Block {
    index: i64,
    partials: Box<[Partial]>,
}

/// A value of a set: sorted as [`Scalar::order`] has it, which is total within a column.
#[derive(Clone, Debug)]
pub(crate) struct Member(pub(crate) Scalar);

impl PartialEq for Member {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Member {}

impl PartialOrd for Member {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Member {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.order(&other.0)
    }
}

/// The tiles of one set: in two pieces of memory, however many, for an event goes to one of many entities, and each
/// piece is another wait for memory.
#[derive(Clone, Default)]
pub(crate) struct Tiles {
    /// How many slots a tile has.
    width: usize,
    /// The index of the last tile, where there is one.
    last: i64,
    /// Ascending, without gaps filled.
    indexes: VecDeque<i64>,
    /// The partial results of one tile after the other: as many of each as the set has slots.
    partials: VecDeque<Partial>,
    /// What only some have: long windows, and distinct values.
    more: Option<Box<More>>,
}

/// What is kept beside the tiles. What is derived (blocks) is not stored, and does not count when two are compared.
#[derive(Clone, Default)]
struct More {
    /// Ascending; the tiles of a block's span merged, for those kinds that are worth it. Only spans behind the last
    /// tile's have one, and not each of them.
    blocks: VecDeque<Block>,
    /// For each slot of counts, all tiles together, once there are blocks: what a window leaves out is taken out.
    whole: Vec<(usize, Partial)>,
    /// For each slot of distinct values: the last tile that each was seen in. A window ends with the last tile, so a
    /// value is in it if that tile is, and the tiles need only count.
    latest: Vec<BTreeMap<Member, i64>>,
}

impl PartialEq for Tiles {
    fn eq(&self, other: &Self) -> bool {
        self.indexes == other.indexes && self.partials == other.partials && self.latest() == other.latest()
    }
}

impl std::fmt::Debug for Tiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = f.debug_struct("Tiles");
        let shown = shown.field("indexes", &self.indexes).field("partials", &self.partials);
        shown.field("latest", &self.latest()).finish_non_exhaustive()
    }
}

impl Tiles {
    /// None yet.
    pub(crate) fn new(set: &TileSet) -> Self {
        let distinct = set.slots.iter().filter(|slot| slot.kind == PartialKind::Distinct).count();
        let more = More { latest: vec![BTreeMap::new(); distinct], ..More::default() };
        Self { width: set.slots.len(), more: (distinct > 0).then(|| Box::new(more)), ..Self::default() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.indexes.is_empty()
    }

    /// Reads what stands here; says something of it.
    pub(crate) fn touch_here(&self) -> bool {
        self.width == 0 || self.more.is_some() || self.last == i64::MIN || self.indexes.len() > self.partials.len()
    }

    /// Reads the last tile, all of it; says something of it.
    pub(crate) fn touch(&self) -> usize {
        let partials = self.partials.iter().rev().take(self.width);
        partials.filter(|partial| matches!(partial, Partial::Distinct(0))).count()
    }

    /// The finest tiles: how many, and each with its index.
    pub(crate) fn fine(&self) -> impl ExactSizeIterator<Item = (i64, impl Iterator<Item = &Partial>)> {
        self.indexes.iter().enumerate().map(|(at, index)| (*index, self.tile(at)))
    }

    /// The indexes of the finest tiles.
    pub(crate) fn indexes(&self) -> &VecDeque<i64> {
        &self.indexes
    }

    /// The last tile of each distinct value, per slot of such; may have values whose tile is gone.
    pub(crate) fn latest(&self) -> &[BTreeMap<Member, i64>] {
        self.more.as_ref().map_or(&[], |more| &more.latest)
    }

    /// Adds a tile behind all others: its partial results, one for each slot.
    pub(crate) fn push(&mut self, index: i64, partials: impl IntoIterator<Item = Partial>) {
        let tiles = self.indexes.len();
        if tiles == self.indexes.capacity() {
            // most entities rest with few tiles: no more room than half (each step is a copy to memory that is new)
            self.indexes.reserve_exact(1 + tiles / 2);
            self.partials.reserve_exact((1 + tiles / 2) * self.width);
        }
        self.indexes.push_back(index);
        self.partials.extend(partials);
        self.last = index;
    }

    fn tile(&self, at: usize) -> impl DoubleEndedIterator<Item = &Partial> + ExactSizeIterator {
        let width = self.width;
        self.partials.range(at * width..(at + 1) * width)
    }

    fn tile_mut(&mut self, at: usize) -> impl DoubleEndedIterator<Item = &mut Partial> + ExactSizeIterator {
        let width = self.width;
        self.partials.range_mut(at * width..(at + 1) * width)
    }

    fn part(&self, at: usize, slot: usize) -> &Partial {
        &self.partials[at * self.width + slot]
    }

    /// Enters an event into the tile of this index; `first` is the first tile that still matters.
    pub(crate) fn add(&mut self, set: &TileSet, types: &[ColumnType], ts_us: i64, columns: &[Scalar], at: [i64; 2]) {
        let [index, first] = at;
        let position = self.tile_at(set, index, first);
        for (slot, partial) in set.slots.iter().zip(self.tile_mut(position)) {
            add_to(partial, slot.column, types, ts_us, columns);
        }
        if self.more.is_none() {
            return;
        }
        for (nth, (place, slot)) in distinct_slots(set).enumerate() {
            let column = slot.column.map(|column| (&columns[column], types[column]));
            if let Some(value) = column.and_then(|(value, ty)| typed(value, ty)) {
                self.see(place, nth, &value, index);
            }
        }
        let Some(more) = &mut self.more else { return };
        for (place, whole) in &mut more.whole {
            add_to(whole, set.slots[*place].column, types, ts_us, columns);
        }
        if more.blocks.back().is_some_and(|last| last.index >= index.div_euclid(BLOCK)) {
            let block = more.blocks.binary_search_by_key(&index.div_euclid(BLOCK), |block| block.index);
            if let Ok(block) = block {
                for (slot, partial) in set.slots.iter().zip(&mut more.blocks[block].partials) {
                    if slot.kind.in_blocks() {
                        add_to(partial, slot.column, types, ts_us, columns);
                    }
                }
            }
        }
    }

    /// Notes that a distinct value was seen in a tile that is there: in slot `place`, the `nth` of its kind.
    pub(crate) fn see(&mut self, place: usize, nth: usize, value: &Scalar, index: i64) {
        let Some(latest) = self.more.as_mut().and_then(|more| more.latest.get_mut(nth)) else { return };
        let before = match latest.entry(Member(sketch::canonical(value))) {
            btree_map::Entry::Vacant(entry) => {
                entry.insert(index);
                None
            }
            btree_map::Entry::Occupied(entry) if *entry.get() >= index => return,
            btree_map::Entry::Occupied(mut entry) => Some(entry.insert(index)),
        };
        for (index, step) in [(before, -1), (Some(index), 1)] {
            let tile = index.and_then(|index| self.position(index));
            if let Some(Partial::Distinct(n)) = tile.and_then(|tile| self.tile_mut(tile).nth(place)) {
                *n = n.saturating_add_signed(step);
            }
        }
    }

    /// Drops what lies before the tile `first`.
    pub(crate) fn evict(&mut self, first: i64) {
        let expired = self.take_out(first);
        if self.indexes.capacity() > 2 * self.indexes.len() + 8 {
            self.indexes.shrink_to_fit();
            self.partials.shrink_to_fit();
        }
        self.drop_blocks(first);
        if let Some(more) = self.more.as_mut().filter(|_| expired > 0) {
            more.latest.iter_mut().for_each(|latest| latest.retain(|_, index| *index >= first));
        }
    }

    /// The partial results of one slot from tile `first` on, ascending in time, as few as there may be.
    pub(crate) fn parts(&self, first: i64, slot: usize) -> Vec<&Partial> {
        let mut parts = Vec::with_capacity(64);
        let mut at = self.indexes.partition_point(|index| *index < first);
        let whole =
            |blocks: &VecDeque<Block>| blocks.partition_point(|block| block.index.saturating_mul(BLOCK) < first);
        let blocks = self.more.iter().flat_map(|more| more.blocks.range(whole(&more.blocks)..));
        for block in blocks {
            while self.indexes.get(at).is_some_and(|index| index.div_euclid(BLOCK) < block.index) {
                parts.push(self.part(at, slot));
                at += 1;
            }
            parts.push(&block.partials[slot]);
            at = self.indexes.partition_point(|index| index.div_euclid(BLOCK) <= block.index);
        }
        parts.extend((at..self.indexes.len()).map(|at| self.part(at, slot)));
        parts
    }

    /// All tiles together without those before `first`, where that is known and is the shorter way.
    pub(crate) fn all_but(&self, first: i64, slot: usize) -> Option<Partial> {
        let (_, whole) = self.more.as_ref()?.whole.iter().find(|(place, _)| *place == slot)?;
        let out = self.indexes.partition_point(|index| *index < first);
        (out < BLOCK as usize).then(|| {
            let mut rest = whole.clone();
            for at in 0..out {
                rest.remove(self.part(at, slot));
            }
            rest
        })
    }

    /// The finest partial results of one slot from tile `first` on, ascending in time.
    pub(crate) fn finest(&self, first: i64, slot: usize) -> impl DoubleEndedIterator<Item = &Partial> {
        let at = self.indexes.partition_point(|index| *index < first);
        (at..self.indexes.len()).map(move |at| self.part(at, slot))
    }

    fn position(&self, index: i64) -> Option<usize> {
        match self.indexes.len().checked_sub(1) {
            Some(last) if self.last == index => Some(last),
            _ => self.indexes.binary_search(&index).ok(),
        }
    }

    /// The place of the tile of an index, made if it is not there. Almost always it is the last one.
    fn tile_at(&mut self, set: &TileSet, index: i64, first: i64) -> usize {
        let last = (!self.indexes.is_empty()).then_some(self.last);
        match last {
            Some(last) if last == index => self.indexes.len() - 1,
            Some(last) if last > index => {
                let at = self.indexes.partition_point(|known| *known < index);
                if self.indexes[at] != index {
                    self.indexes.insert(at, index);
                    let behind = self.partials.split_off(at * self.width);
                    self.partials.extend(set.empty.iter().cloned().chain(behind));
                }
                at
            }
            _ => {
                self.make_room(first);
                if last.is_some_and(|last| last.div_euclid(BLOCK) < index.div_euclid(BLOCK)) {
                    self.close(set);
                }
                if last.is_some_and(|last| last.div_euclid(PRUNE) < index.div_euclid(PRUNE)) {
                    self.prune(set);
                }
                if let Some(last) = self.indexes.len().checked_sub(1) {
                    self.tile_mut(last).for_each(Partial::shrink);
                }
                self.push(index, set.empty.iter().cloned());
                self.indexes.len() - 1
            }
        }
    }

    /// Takes the tiles before `first` out; gives how many there were.
    fn take_out(&mut self, first: i64) -> usize {
        let width = self.width;
        let mut expired = 0;
        while self.indexes.pop_front_if(|index| *index < first).is_some() {
            expired += 1;
        }
        if let Some(more) = &mut self.more {
            for at in 0..expired {
                for (place, whole) in &mut more.whole {
                    whole.remove(&self.partials[at * width + *place]);
                }
            }
        }
        self.partials.drain(..expired * width);
        expired
    }

    /// Drops tiles before `first`, and distinct values once most are gone.
    fn make_room(&mut self, first: i64) {
        if self.indexes.front().is_none_or(|index| *index >= first) {
            return;
        }
        self.take_out(first);
        self.drop_blocks(first);
        let kept = self.distinct();
        let Some(more) = self.more.as_mut().filter(|more| !more.latest.is_empty()) else { return };
        // to look at all once half of them are gone is a constant per event
        let known = more.latest.iter().map(BTreeMap::len).sum::<usize>() as u64;
        if known > 64 && kept < known / 2 {
            more.latest.iter_mut().for_each(|latest| latest.retain(|_, index| *index >= first));
        }
    }

    /// How many distinct values the tiles have, over all slots.
    fn distinct(&self) -> u64 {
        let of = |part: &Partial| if let Partial::Distinct(n) = part { *n } else { 0 };
        if self.latest().is_empty() { 0 } else { self.partials.iter().map(of).sum() }
    }

    fn drop_blocks(&mut self, first: i64) {
        if let Some(more) = &mut self.more {
            while more.blocks.pop_front_if(|block| block.index < first.div_euclid(BLOCK)).is_some() {}
        }
    }

    /// Merges the tiles behind the last block into blocks of their own.
    fn close(&mut self, set: &TileSet) {
        if !set.slots.iter().any(|slot| slot.kind.in_blocks()) {
            return;
        }
        let mut more = self.more.take().unwrap_or_default();
        if more.whole.is_empty() {
            let counted = set.slots.iter().enumerate().filter(|(_, slot)| slot.kind.is_counted());
            more.whole = counted
                .map(|(place, slot)| {
                    let parts: Vec<&Partial> = self.finest(i64::MIN, place).collect();
                    (place, slot.kind.merged(&set.empty[place], &parts))
                })
                .collect();
        }
        let done = more.blocks.back().map(|block| block.index);
        let mut at = done.map_or(0, |done| self.indexes.partition_point(|index| index.div_euclid(BLOCK) <= done));
        while let Some(index) = self.indexes.get(at).map(|index| index.div_euclid(BLOCK)) {
            let end = at + self.indexes.range(at..).take_while(|tile| tile.div_euclid(BLOCK) == index).count();
            // a block of one tile is that tile
            if end - at > 1 {
                let mut partials = set.empty.clone();
                for (place, slot) in set.slots.iter().enumerate().filter(|(_, slot)| slot.kind.in_blocks()) {
                    let parts: Vec<&Partial> = (at..end).map(|at| self.part(at, place)).collect();
                    partials[place] = slot.kind.merged(&set.empty[place], &parts);
                }
                more.blocks.push_back(Block { index, partials });
            }
            at = end;
        }
        let needed = !(more.blocks.is_empty() && more.whole.is_empty() && more.latest.is_empty());
        self.more = needed.then_some(more);
    }

    /// Drops registers that a later tile has with at least the same rank: no window shows them.
    fn prune(&mut self, set: &TileSet) {
        for (place, _) in set.slots.iter().enumerate().filter(|(_, slot)| slot.kind == PartialKind::Registers) {
            let mut ranks = sketch::Ranks::new();
            for at in (0..self.indexes.len()).rev() {
                if let Some(Partial::Registers(registers)) = self.tile_mut(at).nth(place) {
                    registers.retain(|register| ranks.raise(*register));
                    registers.shrink_to_fit();
                }
            }
        }
    }
}

/// The slots of distinct values, with their places.
pub(crate) fn distinct_slots(set: &TileSet) -> impl Iterator<Item = (usize, &Slot)> {
    set.slots.iter().enumerate().filter(|(_, slot)| slot.kind == PartialKind::Distinct)
}

/// Adds the event's value, or the event itself where there is no column.
pub(crate) fn add_to(
    partial: &mut Partial,
    column: Option<usize>,
    types: &[ColumnType],
    ts_us: i64,
    columns: &[Scalar],
) {
    let Some(column) = column else {
        return partial.add(ts_us, &Scalar::Null);
    };
    match (&columns[column], types[column]) {
        (Scalar::Null, _) => {}
        (Scalar::Int(x), ColumnType::Float) => partial.add(ts_us, &Scalar::Float(*x as f64)),
        (value, _) => partial.add(ts_us, value),
    }
}

/// A value that is not null, as its column has it: integers in a column of floats are floats.
pub(crate) fn typed(value: &Scalar, ty: ColumnType) -> Option<Scalar> {
    match (value, ty) {
        (Scalar::Null, _) => None,
        (Scalar::Int(x), ColumnType::Float) => Some(Scalar::Float(*x as f64)),
        (value, _) => Some(value.clone()),
    }
}
