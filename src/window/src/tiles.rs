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

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Tile {
    pub(crate) index: i64,
    pub(crate) partials: Box<[Partial]>,
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

/// The tiles of one set. What is derived (blocks) is not stored, and does not count when two are compared.
#[derive(Clone, Default)]
pub(crate) struct Tiles {
    /// Ascending by index, without gaps filled.
    finest: VecDeque<Tile>,
    /// Ascending; the tiles of a block's span merged, for those kinds that are worth it. Only spans behind the last
    /// tile's have one, and not each of them.
    blocks: VecDeque<Tile>,
    /// For each slot of counts, all tiles together, once there are blocks: what a window leaves out is taken out.
    whole: Vec<(usize, Partial)>,
    /// For each slot of distinct values: the last tile that each was seen in. A window ends with the last tile, so a
    /// value is in it if that tile is, and the tiles need only count.
    latest: Vec<BTreeMap<Member, i64>>,
}

impl PartialEq for Tiles {
    fn eq(&self, other: &Self) -> bool {
        self.finest == other.finest && self.latest == other.latest
    }
}

impl std::fmt::Debug for Tiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tiles").field("finest", &self.finest).field("latest", &self.latest).finish_non_exhaustive()
    }
}

impl Tiles {
    /// None yet.
    pub(crate) fn new(set: &TileSet) -> Self {
        let distinct = set.slots.iter().filter(|slot| slot.kind == PartialKind::Distinct).count();
        Self { latest: vec![BTreeMap::new(); distinct], ..Self::default() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.finest.is_empty()
    }

    /// The finest tiles.
    pub(crate) fn fine(&self) -> &VecDeque<Tile> {
        &self.finest
    }

    /// The last tile of each distinct value, per slot of such; may have values whose tile is gone.
    pub(crate) fn latest(&self) -> &[BTreeMap<Member, i64>] {
        &self.latest
    }

    /// Adds a tile behind all others.
    pub(crate) fn push(&mut self, tile: Tile) {
        self.finest.push_back(tile);
    }

    /// Enters an event into the tile of this index; `first` is the first tile that still matters.
    pub(crate) fn add(&mut self, set: &TileSet, types: &[ColumnType], ts_us: i64, columns: &[Scalar], at: [i64; 2]) {
        let [index, first] = at;
        let position = self.tile_at(set, index, first);
        let mut distinct = 0;
        for (slot, partial) in set.slots.iter().zip(&mut self.finest[position].partials) {
            if slot.kind == PartialKind::Distinct {
                distinct += 1;
            } else {
                add_to(partial, slot.column, types, ts_us, columns);
            }
        }
        if distinct > 0 {
            for (nth, (place, slot)) in distinct_slots(set).enumerate() {
                let column = slot.column.map(|column| (&columns[column], types[column]));
                if let Some(value) = column.and_then(|(value, ty)| typed(value, ty)) {
                    self.see(place, nth, &value, index);
                }
            }
        }
        for (place, whole) in &mut self.whole {
            add_to(whole, set.slots[*place].column, types, ts_us, columns);
        }
        if self.blocks.back().is_some_and(|last| last.index >= index.div_euclid(BLOCK)) {
            let block = self.blocks.binary_search_by_key(&index.div_euclid(BLOCK), |block| block.index);
            if let Ok(block) = block {
                for (slot, partial) in set.slots.iter().zip(&mut self.blocks[block].partials) {
                    if slot.kind.in_blocks() {
                        add_to(partial, slot.column, types, ts_us, columns);
                    }
                }
            }
        }
    }

    /// Notes that a distinct value was seen in a tile that is there: in slot `place`, the `nth` of its kind.
    pub(crate) fn see(&mut self, place: usize, nth: usize, value: &Scalar, index: i64) {
        let before = match self.latest[nth].entry(Member(sketch::canonical(value))) {
            btree_map::Entry::Vacant(entry) => {
                entry.insert(index);
                None
            }
            btree_map::Entry::Occupied(entry) if *entry.get() >= index => return,
            btree_map::Entry::Occupied(mut entry) => Some(entry.insert(index)),
        };
        for (index, step) in [(before, -1), (Some(index), 1)] {
            let tile = index.and_then(|index| self.position(index));
            if let Some(Partial::Distinct(n)) = tile.map(|tile| &mut self.finest[tile].partials[place]) {
                *n = n.saturating_add_signed(step);
            }
        }
    }

    /// Drops what lies before the tile `first`.
    pub(crate) fn evict(&mut self, first: i64) {
        let expired = self.finest.partition_point(|tile| tile.index < first);
        for tile in self.finest.drain(..expired) {
            take_out(&mut self.whole, &tile);
        }
        if self.finest.capacity() > 2 * self.finest.len() + 8 {
            self.finest.shrink_to_fit();
        }
        self.drop_blocks(first);
        if expired > 0 {
            self.latest.iter_mut().for_each(|latest| latest.retain(|_, index| *index >= first));
        }
    }

    /// The partial results of one slot from tile `first` on, ascending in time, as few as there may be.
    pub(crate) fn parts(&self, first: i64, slot: usize) -> Vec<&Partial> {
        let mut parts = Vec::with_capacity(64);
        let mut at = self.finest.partition_point(|tile| tile.index < first);
        let whole = self.blocks.partition_point(|block| block.index.saturating_mul(BLOCK) < first);
        for block in self.blocks.range(whole..) {
            while let Some(tile) = self.finest.get(at).filter(|tile| tile.index.div_euclid(BLOCK) < block.index) {
                parts.push(&tile.partials[slot]);
                at += 1;
            }
            parts.push(&block.partials[slot]);
            at = self.finest.partition_point(|tile| tile.index.div_euclid(BLOCK) <= block.index);
        }
        parts.extend(self.finest.range(at..).map(|tile| &tile.partials[slot]));
        parts
    }

    /// All tiles together without those before `first`, where that is known and is the shorter way.
    pub(crate) fn all_but(&self, first: i64, slot: usize) -> Option<Partial> {
        let (_, whole) = self.whole.iter().find(|(place, _)| *place == slot)?;
        let out = self.finest.partition_point(|tile| tile.index < first);
        (out < BLOCK as usize).then(|| {
            let mut rest = whole.clone();
            for tile in self.finest.range(..out) {
                rest.remove(&tile.partials[slot]);
            }
            rest
        })
    }

    /// The finest partial results of one slot from tile `first` on, ascending in time.
    pub(crate) fn finest(&self, first: i64, slot: usize) -> impl DoubleEndedIterator<Item = &Partial> {
        let at = self.finest.partition_point(|tile| tile.index < first);
        self.finest.range(at..).map(move |tile| &tile.partials[slot])
    }

    fn position(&self, index: i64) -> Option<usize> {
        match self.finest.len().checked_sub(1) {
            Some(last) if self.finest[last].index == index => Some(last),
            _ => self.finest.binary_search_by_key(&index, |tile| tile.index).ok(),
        }
    }

    /// The place of the tile of an index, made if it is not there. Almost always it is the last one.
    fn tile_at(&mut self, set: &TileSet, index: i64, first: i64) -> usize {
        let last = self.finest.back().map(|tile| tile.index);
        match last {
            Some(last) if last == index => self.finest.len() - 1,
            Some(last) if last > index => {
                let at = self.finest.partition_point(|tile| tile.index < index);
                if self.finest[at].index != index {
                    self.finest.insert(at, Tile { index, partials: set.empty.clone() });
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
                if let Some(last) = self.finest.back_mut() {
                    last.partials.iter_mut().for_each(Partial::shrink);
                }
                self.finest.push_back(Tile { index, partials: set.empty.clone() });
                self.finest.len() - 1
            }
        }
    }

    /// Drops tiles before `first`, and distinct values once most are gone.
    fn make_room(&mut self, first: i64) {
        let before = self.finest.len();
        while let Some(tile) = self.finest.pop_front_if(|tile| tile.index < first) {
            take_out(&mut self.whole, &tile);
        }
        if self.finest.len() < before {
            self.drop_blocks(first);
            if self.latest.is_empty() {
                return;
            }
            // to look at all once half of them are gone is a constant per event
            let (kept, known) = (self.distinct(), self.latest.iter().map(BTreeMap::len).sum::<usize>() as u64);
            if known > 64 && kept < known / 2 {
                self.latest.iter_mut().for_each(|latest| latest.retain(|_, index| *index >= first));
            }
        }
    }

    /// How many distinct values the tiles have, over all slots.
    fn distinct(&self) -> u64 {
        let of = |part: &Partial| if let Partial::Distinct(n) = part { *n } else { 0 };
        self.finest.iter().flat_map(|tile| tile.partials.iter().map(of)).sum()
    }

    fn drop_blocks(&mut self, first: i64) {
        while self.blocks.pop_front_if(|block| block.index < first.div_euclid(BLOCK)).is_some() {}
    }

    /// Merges the tiles behind the last block into blocks of their own.
    fn close(&mut self, set: &TileSet) {
        if !set.slots.iter().any(|slot| slot.kind.in_blocks()) {
            return;
        }
        if self.whole.is_empty() {
            let counted = set.slots.iter().enumerate().filter(|(_, slot)| slot.kind.is_counted());
            self.whole = counted
                .map(|(place, slot)| {
                    let parts: Vec<&Partial> = self.finest.iter().map(|tile| &tile.partials[place]).collect();
                    (place, slot.kind.merged(&set.empty[place], &parts))
                })
                .collect();
        }
        let done = self.blocks.back().map(|block| block.index);
        let mut at = done.map_or(0, |done| self.finest.partition_point(|tile| tile.index.div_euclid(BLOCK) <= done));
        while let Some(tile) = self.finest.get(at) {
            let index = tile.index.div_euclid(BLOCK);
            let end = at + self.finest.range(at..).take_while(|tile| tile.index.div_euclid(BLOCK) == index).count();
            // a block of one tile is that tile
            if end - at > 1 {
                let mut partials = set.empty.clone();
                for (place, slot) in set.slots.iter().enumerate().filter(|(_, slot)| slot.kind.in_blocks()) {
                    let parts: Vec<&Partial> = self.finest.range(at..end).map(|tile| &tile.partials[place]).collect();
                    partials[place] = slot.kind.merged(&set.empty[place], &parts);
                }
                self.blocks.push_back(Tile { index, partials });
            }
            at = end;
        }
    }

    /// Drops registers that a later tile has with at least the same rank: no window shows them.
    fn prune(&mut self, set: &TileSet) {
        for (place, _) in set.slots.iter().enumerate().filter(|(_, slot)| slot.kind == PartialKind::Registers) {
            let mut ranks = sketch::Ranks::new();
            for tile in self.finest.iter_mut().rev() {
                if let Partial::Registers(registers) = &mut tile.partials[place] {
                    registers.retain(|register| ranks.raise(*register));
                    registers.shrink_to_fit();
                }
            }
        }
    }
}

/// Takes a tile that goes out of the counts of all.
fn take_out(whole: &mut [(usize, Partial)], tile: &Tile) {
    for (place, whole) in whole {
        whole.remove(&tile.partials[*place]);
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
