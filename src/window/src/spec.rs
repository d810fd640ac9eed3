//! The definition of a view's windows, checked and laid out: which tile sets its state keeps, what
//! each tile holds, and how every feature is read from them. Holds no events.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use crate::cells::Layout;
use crate::error::Error;
use crate::function::Function;
use crate::hop;
use crate::partial::{Partial, PartialKind};
use crate::scalar::{ColumnType, Output, Scalar};

/// One aggregation as the user registered it (Feast's `Aggregation`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AggregationDef {
    /// The feature's name, resolved.
    pub feature: String,
    /// The column; may be empty for `count`, which then counts events.
    pub column: String,
    /// The function, as in [`Function::parse`].
    pub function: String,
    /// The window in microseconds; 0 is a lifetime window.
    pub window_us: i64,
    /// The slide in microseconds; 0, or not smaller than the window, means not given.
    pub slide_us: i64,
}

/// The tiling settings of a view (Feast's `enable_tiling` and `tiling_hop_size`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tiling {
    /// Whether the view names its own hop.
    pub enabled: bool,
    /// That hop in microseconds; 0 is Feast's default of 5 minutes.
    pub hop_us: i64,
}

/// A feature that the definition makes.
#[derive(Clone, Debug)]
pub struct Feature {
    name: String,
    function: Function,
    output: Output,
    reads: Vec<usize>,
}

impl Feature {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its function.
    pub fn function(&self) -> Function {
        self.function
    }

    /// The type of its values; each may also be null, except those of `count`.
    pub fn output(&self) -> Output {
        self.output
    }

    /// Which of the definition's reads it is made of.
    pub(crate) fn reads(&self) -> &[usize] {
        &self.reads
    }
}

/// What one tile keeps in one place: a kind of partial result over a column, or over events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Slot {
    pub(crate) column: Option<usize>,
    pub(crate) kind: PartialKind,
    /// What the kind needs to know, as [`Partial::empty`] has it; 0 for most.
    pub(crate) parameter: i64,
}

/// All aggregations of one hop: they share tiles, kept for the widest window among them.
#[derive(Clone, Debug)]
pub(crate) struct TileSet {
    /// Microseconds; 0 for lifetime windows, whose one tile is tile 0.
    pub(crate) hop_us: i64,
    pub(crate) window_us: i64,
    pub(crate) slots: Vec<Slot>,
    /// For each slot, a partial result of no value.
    pub(crate) empty: Box<[Partial]>,
    /// How a tile stands in memory.
    pub(crate) layout: Layout,
}

impl TileSet {
    fn new(types: &[ColumnType], hop_us: i64, window_us: i64, slots: Vec<Slot>) -> Self {
        let column = |slot: &Slot| slot.column.map_or(ColumnType::Other, |column| types[column]);
        let empty = |slot: &Slot| Partial::empty(slot.kind, slot.parameter, column(slot));
        let empty: Box<[Partial]> = slots.iter().map(empty).collect();
        let layout = Layout::new(&slots, types, &empty);
        Self { hop_us, window_us, slots, empty, layout }
    }

    pub(crate) fn index(&self, ts_us: i64) -> i64 {
        hop::index(ts_us, self.hop_us)
    }

    /// Whether the tile of this index holds `ts_us`.
    pub(crate) fn is_in(&self, ts_us: i64, index: i64) -> bool {
        // modulo 2^64, in which a difference less than a hop is what it is
        self.hop_us == 0 || (ts_us.wrapping_sub(index.wrapping_mul(self.hop_us)) as u64) < self.hop_us as u64
    }

    /// The first tile that can matter at `t_us` or later.
    pub(crate) fn first_index(&self, t_us: i64) -> i64 {
        hop::first_index(t_us, self.window_us, self.hop_us)
    }
}

/// One slot merged over one window: features that need the same one share it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Read {
    pub(crate) set: usize,
    pub(crate) slot: usize,
    pub(crate) window_us: i64,
}

/// A view's windows, checked. Build it once per view; every [`crate::State`] needs it.
#[derive(Clone, Debug)]
pub struct Spec {
    features: Vec<Feature>,
    columns: Vec<String>,
    types: Vec<ColumnType>,
    sets: Vec<TileSet>,
    reads: Vec<Read>,
    /// The widest window; `i64::MAX` for a lifetime.
    widest_us: i64,
    fingerprint: u64,
}

/// An aggregation between check and layout.
struct Checked {
    function: Function,
    output: Output,
    hop_us: i64,
}

impl Spec {
    /// Checks the aggregations and lays out their tiles. `column_type` tells the type of a column
    /// of the stream, `None` if it has none of that name.
    ///
    /// # Errors
    /// [`Error::Aggregation`] for the first aggregation that is refused, with its feature, function
    /// and column and the reason; [`Error::NoAggregations`].
    pub fn new(
        defs: &[AggregationDef],
        tiling: Tiling,
        column_type: impl Fn(&str) -> Option<ColumnType>,
    ) -> Result<Self, Error> {
        if defs.is_empty() {
            return Err(Error::NoAggregations);
        }
        let mut names = HashSet::new();
        let mut columns: BTreeMap<&str, ColumnType> = BTreeMap::new();
        let mut checked = Vec::with_capacity(defs.len());
        for def in defs {
            let known = if def.column.is_empty() { None } else { column_type(&def.column) };
            let aggregation =
                check(def, known, tiling, names.insert(&def.feature)).map_err(|reason| Error::Aggregation {
                    feature: def.feature.clone(),
                    function: def.function.clone(),
                    column: def.column.clone(),
                    reason: Box::new(reason),
                })?;
            columns.extend(known.map(|ty| (def.column.as_str(), ty)));
            checked.push(aggregation);
        }

        let position: BTreeMap<&str, usize> = columns.keys().enumerate().map(|(i, name)| (*name, i)).collect();
        let types: Vec<ColumnType> = columns.values().copied().collect();
        let slots_of = |def: &AggregationDef, function: Function| {
            let column = position.get(def.column.as_str()).copied();
            function.needs().into_iter().map(move |(kind, parameter)| Slot { column, kind, parameter })
        };

        let mut layout: BTreeMap<i64, (i64, BTreeSet<Slot>)> = BTreeMap::new();
        for (def, aggregation) in defs.iter().zip(&checked) {
            let (window_us, slots) = layout.entry(aggregation.hop_us).or_default();
            *window_us = def.window_us.max(*window_us);
            slots.extend(slots_of(def, aggregation.function));
        }
        let sets: Vec<TileSet> = layout
            .into_iter()
            .map(|(hop_us, (window_us, slots))| {
                let slots: Vec<Slot> = slots.into_iter().collect();
                TileSet::new(&types, hop_us, window_us, slots)
            })
            .collect();

        let mut reads: Vec<Read> = Vec::new();
        let mut features = Vec::with_capacity(defs.len());
        for (def, aggregation) in defs.iter().zip(checked) {
            let mut wanted = Vec::new();
            for slot in slots_of(def, aggregation.function) {
                let read = sets.iter().enumerate().find_map(|(set, tiles)| {
                    let slot = tiles.slots.binary_search(&slot).ok()?;
                    (tiles.hop_us == aggregation.hop_us).then_some(Read { set, slot, window_us: def.window_us })
                });
                // always found: the sets were made of the same slots
                let Some(read) = read else { continue };
                wanted.push(reads.iter().position(|known| *known == read).unwrap_or(reads.len()));
                if wanted.last() == Some(&reads.len()) {
                    reads.push(read);
                }
            }
            features.push(Feature {
                name: def.feature.clone(),
                function: aggregation.function,
                output: aggregation.output,
                reads: wanted,
            });
        }
        let columns: Vec<String> = columns.into_keys().map(str::to_owned).collect();
        let fingerprint = fingerprint(&columns, &types, &sets);
        Ok(Self { features, columns, types, widest_us: widest(&sets), sets, reads, fingerprint })
    }

    /// The features, in the order of the definitions and of [`crate::Answer::values`].
    pub fn features(&self) -> &[Feature] {
        &self.features
    }

    /// The columns that the definition reads, in the order in which events must supply them.
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// The widest window in microseconds, without its hop; 0 if one is a lifetime window.
    pub fn widest_window(&self) -> i64 {
        if self.widest_us == i64::MAX { 0 } else { self.widest_us }
    }

    /// The earliest start of all windows at `t_us`, in microseconds: no event before it matters at
    /// `t_us` or later. `i64::MIN` if there is a lifetime window.
    pub fn window_start(&self, t_us: i64) -> i64 {
        let starts = self.sets.iter().map(|set| hop::start(t_us, set.window_us, set.hop_us));
        starts.min().unwrap_or(i64::MIN)
    }

    /// Whether no window reaches back to `ts_us` at `now_us` or later.
    pub(crate) fn is_late(&self, ts_us: i64, now_us: i64) -> bool {
        // a window starts at its width before now or earlier
        ts_us < now_us.saturating_sub(self.widest_us) && ts_us < self.window_start(now_us)
    }

    /// Tells definitions apart whose state differs, the same in every process and build. It covers
    /// what the state keeps (columns, types, hops, reach, partial results), so state outlives a
    /// rename, a new order, or a new function over partial results that are already kept.
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    pub(crate) fn sets(&self) -> &[TileSet] {
        &self.sets
    }

    pub(crate) fn reads(&self) -> &[Read] {
        &self.reads
    }

    pub(crate) fn types(&self) -> &[ColumnType] {
        &self.types
    }

    /// Whether an event has one value of the right type per column.
    ///
    /// # Errors
    /// [`Error::EventWidth`], [`Error::EventType`].
    pub fn check(&self, values: &[Scalar]) -> Result<(), Error> {
        if values.len() != self.types.len() {
            return Err(Error::EventWidth { expected: self.types.len(), found: values.len() });
        }
        for (i, (ty, value)) in self.types.iter().zip(values).enumerate() {
            if !ty.admits(value) {
                return Err(Error::EventType {
                    column: self.columns[i].clone(),
                    expected: *ty,
                    found: value.type_name(),
                });
            }
        }
        Ok(())
    }

    /// What is kept of tile sets (hop, window and slots) over columns, without features.
    pub(crate) fn of_sets(columns: Vec<String>, types: Vec<ColumnType>, sets: Vec<(i64, i64, Vec<Slot>)>) -> Self {
        let set = |(hop_us, window_us, slots)| TileSet::new(&types, hop_us, window_us, slots);
        let sets: Vec<TileSet> = sets.into_iter().map(set).collect();
        let fingerprint = fingerprint(&columns, &types, &sets);
        let (features, reads) = (Vec::new(), Vec::new());
        Self { features, columns, types, widest_us: widest(&sets), sets, reads, fingerprint }
    }
}

fn widest(sets: &[TileSet]) -> i64 {
    sets.iter().map(|set| if set.window_us == 0 { i64::MAX } else { set.window_us }).max().unwrap_or(0)
}

fn check(def: &AggregationDef, known: Option<ColumnType>, tiling: Tiling, new_name: bool) -> Result<Checked, Error> {
    let function = Function::parse(&def.function)?;
    if def.column.is_empty() {
        if !function.takes_events() {
            return Err(Error::MissingColumn { function: def.function.clone() });
        }
    } else if known.is_none() {
        return Err(Error::UnknownColumn { column: def.column.clone() });
    }
    let output = function.output(known).map_err(|accepted| Error::ColumnType {
        function: def.function.clone(),
        column: def.column.clone(),
        column_type: known.unwrap_or(ColumnType::Other),
        accepted,
    })?;
    let hop_us = hop::choose(def.window_us, def.slide_us, tiling)?;
    if !new_name {
        return Err(Error::DuplicateFeature);
    }
    Ok(Checked { function, output, hop_us })
}

/// FNV-1a, 64 bits, over the layout. Lengths stand before their items, so nothing runs together.
fn fingerprint(columns: &[String], types: &[ColumnType], sets: &[TileSet]) -> u64 {
    let mut hash = Fnv(0xcbf2_9ce4_8422_2325);
    hash.number(columns.len() as i64);
    for (column, ty) in columns.iter().zip(types) {
        hash.number(column.len() as i64);
        hash.bytes(column.as_bytes());
        hash.number(match ty {
            ColumnType::Bool => 0,
            ColumnType::Int => 1,
            ColumnType::Float => 2,
            ColumnType::Timestamp => 3,
            ColumnType::Text => 4,
            ColumnType::Bytes => 5,
            ColumnType::Other => 6,
        });
    }
    hash.number(sets.len() as i64);
    for set in sets {
        hash.number(set.hop_us);
        hash.number(set.window_us);
        hash.number(set.slots.len() as i64);
        for slot in &set.slots {
            hash.number(slot.column.map_or(-1, |i| i as i64));
            hash.number(slot.kind as i64);
            if slot.parameter != 0 {
                hash.number(slot.parameter);
            }
        }
    }
    hash.0
}

struct Fnv(u64);

impl Fnv {
    fn bytes(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    fn number(&mut self, number: i64) {
        self.bytes(&number.to_le_bytes());
    }
}
