//! The tiles of one tile set of one entity: finest tiles, blocks of them merged beforehand so that a long window is
//! read in few steps, and where each distinct value was seen last. Knows no clock and no bytes.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::{BTreeMap, VecDeque, btree_map};

use crate::partial::{Partial, PartialKind};
use crate::ring::Ring;
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

/// The tiles of one set: their words in one piece of memory, however many, for an event goes to one of many entities, and
/// each piece is another wait for memory.
#[derive(Clone, Default)]
pub(crate) struct Tiles {
    /// The indexes of the first tile and of the last, where there is one.
    front: i64,
    last: i64,
    /// How many words a tile has.
    width: usize,
    /// A record for each tile, ascending, without gaps filled: its index, then what its layout says.
    ring: Ring,
    /// What the layout keeps apart, of one tile after the other.
    apart: VecDeque<Partial>,
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
        self.width == other.width
            && self.ring.iter(self.width).eq(other.ring.iter(other.width))
            && self.apart == other.apart
            && self.latest() == other.latest()
    }
}

impl std::fmt::Debug for Tiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = f.debug_struct("Tiles");
        let words: Vec<&[u64]> = self.ring.iter(self.width).collect();
        shown.field("words", &words).field("apart", &self.apart).field("latest", &self.latest()).finish_non_exhaustive()
    }
}

/// The index of a tile, of whose words it is the first.
fn index_of(words: &[u64]) -> i64 {
    words[0] as i64
}

impl Tiles {
    /// None yet.
    pub(crate) fn new(set: &TileSet) -> Self {
        let distinct = distinct_among(&set.slots);
        let more = More { latest: vec![BTreeMap::new(); distinct], ..More::default() };
        let width = set.layout.words().len();
        Self { width, more: (distinct > 0).then(|| Box::new(more)), ..Self::default() }
    }

    pub(crate) fn len(&self) -> usize {
        self.ring.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads what stands here; says something of it.
    pub(crate) fn touch_here(&self) -> bool {
        self.width == 0 || self.more.is_some() || self.last == i64::MIN || self.ring.len() > self.ring.capacity()
    }

    /// Reads the last tile, all of it; says something of it.
    pub(crate) fn touch(&self) -> u64 {
        let Some(last) = self.len().checked_sub(1) else { return 0 };
        let words = self.ring.get(self.width, last);
        // a word of each line of memory, and the last one
        let words = words.iter().step_by(8).chain(words.last()).fold(0, |a, b| a ^ b);
        words ^ u64::from(matches!(self.apart.back(), Some(Partial::Distinct(0))))
    }

    /// The indexes of the finest tiles.
    pub(crate) fn indexes(&self) -> impl Iterator<Item = i64> {
        self.ring.iter(self.width).map(index_of)
    }

    /// The index of the tile of a place.
    pub(crate) fn index(&self, at: usize) -> i64 {
        index_of(self.ring.get(self.width, at))
    }

    /// The index of the last tile.
    pub(crate) fn last(&self) -> Option<i64> {
        (!self.is_empty()).then_some(self.last)
    }

    /// The place of the first tile that is not before this index.
    pub(crate) fn from(&self, first: i64) -> usize {
        self.ring.partition_point(self.width, |words| index_of(words) < first)
    }

    /// The last tile of each distinct value, per slot of such; may have values whose tile is gone.
    pub(crate) fn latest(&self) -> &[BTreeMap<Member, i64>] {
        self.more.as_ref().map_or(&[], |more| &more.latest)
    }

    /// Adds a tile of no value behind all others.
    pub(crate) fn push(&mut self, set: &TileSet, index: i64) {
        self.ring.push(set.layout.words());
        let at = self.len() - 1;
        self.ring.get_mut(self.width, at)[0] = index as u64;
        let apart = set.layout.apart();
        if self.apart.len() + apart.len() > self.apart.capacity() {
            self.apart.reserve_exact((self.ring.capacity() - at) * apart.len());
        }
        self.apart.extend(apart.iter().cloned());
        self.last = index;
        if at == 0 {
            self.front = index;
        }
    }

    /// Puts a slot's partial result into the last tile, which has none there.
    pub(crate) fn put(&mut self, set: &TileSet, slot: usize, partial: Partial) {
        let Some(last) = self.len().checked_sub(1) else { return };
        let words = self.ring.get_mut(self.width, last);
        set.layout.put(slot, words, (&mut self.apart, last * set.layout.apart().len()), partial);
    }

    /// A slot's partial result in the tile of a place.
    pub(crate) fn part<'a>(&'a self, set: &TileSet, at: usize, slot: usize) -> Cow<'a, Partial> {
        let words = self.ring.get(self.width, at);
        set.layout.get(slot, words, &self.apart, at * set.layout.apart().len())
    }

    /// Enters an event that is not after `now_us`, where it still matters.
    pub(crate) fn add(&mut self, set: &TileSet, types: &[ColumnType], ts_us: i64, columns: &[Scalar], now_us: i64) {
        let (index, first) = match self.last() {
            // most events are in the last tile: then nothing is divided
            Some(last) if set.is_in(ts_us, last) => (last, i64::MIN),
            _ => (set.index(ts_us), set.first_index(now_us)),
        };
        if index < first {
            return;
        }
        let position = self.tile_at(set, index, first);
        let words = self.ring.get_mut(self.width, position);
        let apart = (&mut self.apart, position * set.layout.apart().len());
        set.layout.add(&set.slots, words, apart, (ts_us, columns, types));
        if self.more.is_none() {
            return;
        }
        for (nth, (place, slot)) in distinct_slots(set).enumerate() {
            let column = slot.column.map(|column| (&columns[column], types[column]));
            if let Some(value) = column.and_then(|(value, ty)| typed(value, ty)) {
                self.see(set, place, nth, &value, index);
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
    pub(crate) fn see(&mut self, set: &TileSet, place: usize, nth: usize, value: &Scalar, index: i64) {
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
            let Some(tile) = index.and_then(|index| self.position(index)) else { continue };
            if let Some(n) = set.layout.distinct(place, self.ring.get_mut(self.width, tile)) {
                *n = n.saturating_add_signed(step);
            }
        }
    }

    /// Drops what lies before the tile `first`.
    pub(crate) fn evict(&mut self, set: &TileSet, first: i64) {
        let expired = self.take_out(set, first);
        if self.ring.capacity() > 2 * self.len() + 8 {
            self.ring.resize(self.width, self.len());
            self.apart.shrink_to_fit();
        }
        self.drop_blocks(first);
        if let Some(more) = self.more.as_mut().filter(|_| expired > 0) {
            more.latest.iter_mut().for_each(|latest| latest.retain(|_, index| *index >= first));
        }
    }

    /// The partial results of one slot from tile `first` on, ascending in time, as few as there may be.
    pub(crate) fn parts<'a>(&'a self, set: &TileSet, first: i64, slot: usize) -> Vec<Cow<'a, Partial>> {
        let mut parts = Vec::with_capacity(64);
        let mut at = self.from(first);
        let whole =
            |blocks: &VecDeque<Block>| blocks.partition_point(|block| block.index.saturating_mul(BLOCK) < first);
        let blocks = self.more.iter().flat_map(|more| more.blocks.range(whole(&more.blocks)..));
        for block in blocks {
            while at < self.len() && self.index(at).div_euclid(BLOCK) < block.index {
                parts.push(self.part(set, at, slot));
                at += 1;
            }
            parts.push(Cow::Borrowed(&block.partials[slot]));
            at = self.behind_block(block.index);
        }
        parts.extend((at..self.len()).map(|at| self.part(set, at, slot)));
        parts
    }

    /// The place of the first tile behind a block.
    fn behind_block(&self, block: i64) -> usize {
        self.ring.partition_point(self.width, |words| index_of(words).div_euclid(BLOCK) <= block)
    }

    /// All tiles together without those before `first`, where that is known and is the shorter way.
    pub(crate) fn all_but(&self, set: &TileSet, first: i64, slot: usize) -> Option<Partial> {
        let (_, whole) = self.more.as_ref()?.whole.iter().find(|(place, _)| *place == slot)?;
        let out = self.from(first);
        (out < BLOCK as usize).then(|| {
            let mut rest = whole.clone();
            for at in 0..out {
                rest.remove(&self.part(set, at, slot));
            }
            rest
        })
    }

    /// The finest partial results of one slot from tile `first` on, ascending in time.
    pub(crate) fn finest<'a>(
        &'a self,
        set: &'a TileSet,
        first: i64,
        slot: usize,
    ) -> impl DoubleEndedIterator<Item = Cow<'a, Partial>> + Clone {
        (self.from(first)..self.len()).map(move |at| self.part(set, at, slot))
    }

    /// The place of the tile of an index, where it is there.
    pub(crate) fn position(&self, index: i64) -> Option<usize> {
        if self.last() == Some(index) {
            return Some(self.len() - 1);
        }
        let at = self.from(index);
        (at < self.len() && self.index(at) == index).then_some(at)
    }

    /// The place of the tile of an index, made if it is not there. Almost always it is the last one.
    fn tile_at(&mut self, set: &TileSet, index: i64, first: i64) -> usize {
        let last = self.last();
        match last {
            Some(last) if last == index => self.len() - 1,
            Some(last) if last > index => {
                let at = self.from(index);
                if self.index(at) != index {
                    let apart = set.layout.apart();
                    self.ring.insert(at, set.layout.words());
                    self.ring.get_mut(self.width, at)[0] = index as u64;
                    self.front = self.front.min(index);
                    if !apart.is_empty() {
                        let behind = self.apart.split_off(at * apart.len());
                        self.apart.extend(apart.iter().cloned().chain(behind));
                    }
                }
                at
            }
            _ => {
                self.make_room(set, first);
                if last.is_some_and(|last| last.div_euclid(BLOCK) < index.div_euclid(BLOCK)) {
                    self.close(set);
                }
                if last.is_some_and(|last| last.div_euclid(PRUNE) < index.div_euclid(PRUNE)) {
                    self.prune(set);
                }
                self.apart.iter_mut().rev().take(set.layout.apart().len()).for_each(Partial::shrink);
                self.push(set, index);
                self.len() - 1
            }
        }
    }

    /// Takes the tiles before `first` out; gives how many there were.
    fn take_out(&mut self, set: &TileSet, first: i64) -> usize {
        let expired = self.from(first);
        if expired == 0 {
            return 0;
        }
        let apart = set.layout.apart().len();
        if let Some(more) = &mut self.more {
            for (place, whole) in &mut more.whole {
                let Some(place) = set.layout.place_apart(*place) else { continue };
                (0..expired).for_each(|at| whole.remove(&self.apart[at * apart + place]));
            }
        }
        self.ring.drop_front(expired);
        if !self.is_empty() {
            self.front = self.index(0);
        }
        self.apart.drain(..expired * apart);
        expired
    }

    /// Drops tiles before `first`, and distinct values once most are gone.
    fn make_room(&mut self, set: &TileSet, first: i64) {
        if self.is_empty() || self.front >= first {
            return;
        }
        self.take_out(set, first);
        self.drop_blocks(first);
        let kept = self.distinct(set);
        let Some(more) = self.more.as_mut().filter(|more| !more.latest.is_empty()) else { return };
        // to look at all once half of them are gone is a constant per event
        let known = more.latest.iter().map(BTreeMap::len).sum::<usize>() as u64;
        if known > 64 && kept < known / 2 {
            more.latest.iter_mut().for_each(|latest| latest.retain(|_, index| *index >= first));
        }
    }

    /// How many distinct values the tiles have, over all slots.
    fn distinct(&self, set: &TileSet) -> u64 {
        if self.latest().is_empty() {
            return 0;
        }
        let parts = distinct_slots(set).flat_map(|(place, _)| self.finest(set, i64::MIN, place));
        parts.map(|part| if let Partial::Distinct(n) = *part { n } else { 0 }).sum()
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
                    let parts: Vec<_> = self.finest(set, i64::MIN, place).collect();
                    (place, slot.kind.merged(&set.empty[place], &parts))
                })
                .collect();
        }
        let mut at = more.blocks.back().map_or(0, |done| self.behind_block(done.index));
        while at < self.len() {
            let index = self.index(at).div_euclid(BLOCK);
            let end = self.behind_block(index);
            // a block of one tile is that tile
            if end - at > 1 {
                let mut partials = set.empty.clone();
                for (place, slot) in set.slots.iter().enumerate().filter(|(_, slot)| slot.kind.in_blocks()) {
                    let parts: Vec<_> = (at..end).map(|at| self.part(set, at, place)).collect();
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
        let apart = set.layout.apart().len();
        let registers = set.slots.iter().enumerate().filter(|(_, slot)| slot.kind == PartialKind::Registers);
        for place in registers.filter_map(|(slot, _)| set.layout.place_apart(slot)) {
            let mut ranks = sketch::Ranks::new();
            for at in (0..self.len()).rev() {
                if let Partial::Registers(registers) = &mut self.apart[at * apart + place] {
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

/// How many of the slots are of distinct values.
pub(crate) fn distinct_among(slots: &[Slot]) -> usize {
    slots.iter().filter(|slot| slot.kind == PartialKind::Distinct).count()
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
