//! Which rows of a source some entity row may match, by keys and time alone: asked of whole chunks, or by the Parquet
//! reader as a filter, so that features are decoded of those rows only. Knows no frame and no result.

use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arrow::array::{Array, ArrayRef, BooleanBufferBuilder, Int64Array};
use arrow::buffer::NullBuffer;
use arrow::datatypes::DataType;
use datafusion::common::DataFusionError;
use datafusion::error::Result as EngineResult;
use datafusion::logical_expr::{
    ColumnarValue, Expr, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility, cast,
};
use model::Result;

use crate::asof::{Keys, Sorted};
use crate::convert::micros;
use crate::engine::{Cut, Table, ident};
use crate::error::arrow as arrow_error;
use crate::keys::KeyRows;

/// Of so many rows that are looked up fewer than one is found: then features are decoded of those only that are. Of more
/// it costs more to leave rows out than to decode them (measured: one of 300 costs a fifth less, one of 45 a fifth more).
const SPARSE: usize = 128;

/// Finds build rows' places.
pub(super) struct Locator {
    probe: Arc<Sorted>,
    rows: Arc<KeyRows>,
    cut: Cut,
    reach: i64,
    looked: AtomicUsize,
    found: AtomicUsize,
}

impl Locator {
    /// `reach` (µs, 0 is without end) is how far back an entity row sees.
    pub(super) fn new(probe: Arc<Sorted>, rows: Arc<KeyRows>, cut: Cut, reach: i64) -> Self {
        Self { probe, rows, cut, reach, looked: AtomicUsize::new(0), found: AtomicUsize::new(0) }
    }

    /// The places of build rows ([`Sorted::locate`]). `keys` are as the source has them when they are sorted.
    pub(super) fn locate(&self, keys: &[ArrayRef], time: &ArrayRef) -> Result<Vec<(u32, u32)>> {
        let micros = micros(&self.cut.time, time)?;
        let named = self.cut.keys.iter().zip(keys);
        let keys: Vec<ArrayRef> =
            named.map(|((name, key), column)| key.of_source(name, column)).collect::<Result<_>>()?;
        self.find(&keys, &micros)
    }

    /// The same, and counted.
    pub(super) fn counted(&self, keys: &[ArrayRef], time: &ArrayRef) -> Result<Vec<(u32, u32)>> {
        let found = self.locate(keys, time)?;
        self.looked.fetch_add(time.len(), Ordering::Relaxed);
        self.found.fetch_add(found.len(), Ordering::Relaxed);
        Ok(found)
    }

    /// Whether few rows are found of those that are looked up, of which there are `all`.
    pub(super) fn is_sparse(&self, all: usize) -> bool {
        let (looked, found) = (self.looked.load(Ordering::Relaxed), self.found.load(Ordering::Relaxed));
        // Before it is known, an entity row is taken to find one or two.
        let (looked, found) = if looked == 0 { (all, 2 * self.probe.places()) } else { (looked, found) };
        found.saturating_mul(SPARSE) < looked
    }

    fn find(&self, keys: &[ArrayRef], micros: &Int64Array) -> Result<Vec<(u32, u32)>> {
        let nulls = keys.iter().map(|k| k.nulls());
        let nulls = nulls.fold(micros.nulls().cloned(), |a, b| NullBuffer::union(a.as_ref(), b));
        let keys = Keys::of(keys, &self.rows, micros.len())?;
        Ok(self.probe.locate(&keys, micros, nulls.as_ref(), self.reach))
    }

    /// The question as an expression over the source's columns.
    pub(super) fn filter(self: &Arc<Self>, table: &Table) -> Result<Expr> {
        let mut columns = Vec::with_capacity(self.cut.keys.len() + 1);
        for (name, key) in &self.cut.keys {
            let from = table.schema.field_with_name(name).map_err(arrow_error)?.data_type();
            let to = key.sort_type(from);
            columns.push(if *from == to { ident(name) } else { cast(ident(name), to) });
        }
        columns.push(ident(&self.cut.time));
        let signature = Signature::any(columns.len(), Volatility::Stable);
        Ok(ScalarUDF::from(Located { locator: self.clone(), signature }).call(columns))
    }
}

/// A [`Locator`] as a function of keys and time.
#[derive(Clone)]
struct Located {
    locator: Arc<Locator>,
    signature: Signature,
}

impl std::fmt::Debug for Located {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Located").finish_non_exhaustive()
    }
}

impl PartialEq for Located {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.locator, &other.locator)
    }
}

impl Eq for Located {}

impl Hash for Located {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.locator).hash(state);
    }
}

impl ScalarUDFImpl for Located {
    fn name(&self) -> &'static str {
        "located"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _types: &[DataType]) -> EngineResult<DataType> {
        Ok(DataType::Boolean)
    }

    fn invoke_with_args(&self, given: ScalarFunctionArgs) -> EngineResult<ColumnarValue> {
        let rows = given.number_rows;
        let arrays = given.args.into_iter().map(|column| column.into_array(rows));
        let mut arrays = arrays.collect::<EngineResult<Vec<ArrayRef>>>()?;
        let found = match arrays.pop() {
            Some(time) => self.locator.counted(&arrays, &time),
            None => Ok(Vec::new()),
        };
        let found = found.map_err(|e| DataFusionError::External(Box::new(e)))?;
        let mut is_found = BooleanBufferBuilder::new(rows);
        is_found.append_n(rows, false);
        for (row, _) in found {
            is_found.set_bit(row as usize, true);
        }
        let is_found = arrow::array::BooleanArray::new(is_found.finish(), None);
        Ok(ColumnarValue::Array(Arc::new(is_found)))
    }
}
