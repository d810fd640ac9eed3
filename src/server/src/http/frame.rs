//! A data frame out of a JSON body, without a tree of values between: a column of one kind of cell is
//! read straight into one piece of memory. Knows no view and no type of one.

use std::borrow::Cow;
use std::fmt;

use model::Error;
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value as Json;
use service::push::{Cell, Cells, Frame, Texts};

/// What `pandas.DataFrame(df)` reads from JSON: `{column: [..]}`, or `{column: {index: value}}` with the
/// rows in the order of the first column's index.
///
/// Errors: a column that is neither, columns of unequal length.
pub(super) struct Df(pub(super) Frame);

impl<'de> Deserialize<'de> for Df {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let columns = deserializer.deserialize_map(Columns)?;
        frame(columns).map(Self).map_err(|e| de::Error::custom(e.message()))
    }
}

/// A frame that the SDK's remote online store may have made. It sends the join keys of an on-demand view
/// twice, once as the entity's and once as the view's columns, both into one list: `[1, 1, 2, 2]` beside
/// the two times of two rows. That is read as what it means; else the frame is a [`Df`].
///
/// Source: `online_write_batch` in `feast/infra/online_stores/remote.py`.
pub(super) struct Written(pub(super) Frame);

impl<'de> Deserialize<'de> for Written {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut columns = deserializer.deserialize_map(Columns)?;
        halve_doubled(&mut columns);
        frame(columns).map(Self).map_err(|e| de::Error::custom(e.message()))
    }
}

/// Takes every second cell of the columns that have each cell twice in a row.
fn halve_doubled(columns: &mut [(String, Column)]) {
    let times = columns.iter().find_map(|(name, column)| match column {
        Column::List(cells) if name == "event_timestamp" => Some(cells.len()),
        _ => None,
    });
    for (_, column) in columns {
        if let Column::List(cells) = column
            && times.is_some_and(|rows| rows > 0 && cells.len() == 2 * rows)
            && let Some(half) = cells.halved()
        {
            *cells = half;
        }
    }
}

/// A column as it stands in the body.
enum Column {
    List(Cells),
    Indexed(serde_json::Map<String, Json>),
    Other,
}

fn frame(columns: Vec<(String, Column)>) -> model::Result<Frame> {
    let index: Option<Vec<String>> = columns.iter().find_map(|(_, column)| match column {
        Column::Indexed(cells) => Some(cells.keys().cloned().collect()),
        _ => None,
    });
    let mut frame = Frame::default();
    for (position, (name, column)) in columns.into_iter().enumerate() {
        let cells = match (column, &index) {
            (Column::List(cells), _) => cells,
            (Column::Indexed(mut cells), Some(index)) => {
                let row = index.iter().map(|key| cells.shift_remove(key).unwrap_or(Json::Null)).collect();
                if let Some(extra) = cells.keys().next() {
                    return Err(Error::invalid(format!(
                        "df: column '{name}' has the index '{extra}', which the first column has not"
                    )));
                }
                of_json(row)
            }
            _ => {
                return Err(Error::invalid(format!(
                    "df: column '{name}' is neither a list nor an object: send {{\"{name}\": [..]}}"
                )));
            }
        };
        if position > 0 && cells.len() != frame.rows {
            return Err(Error::invalid(format!(
                "df: All arrays must be of the same length: column '{name}' has {} values, the first column {}",
                cells.len(),
                frame.rows
            )));
        }
        frame.rows = cells.len();
        frame.columns.push((name, cells));
    }
    Ok(frame)
}

fn of_json(cells: Vec<Json>) -> Cells {
    let mut builder = Builder::new(cells.len());
    for cell in cells {
        builder.push(match cell {
            Json::Number(n) => match (n.as_i64(), n.as_f64()) {
                (Some(n), _) => One::Integer(n),
                (None, Some(f)) if !n.is_u64() => One::Float(f),
                _ => One::Other(Json::Number(n)),
            },
            Json::String(text) => One::Text(text.into()),
            other => One::Other(other),
        });
    }
    builder.finish()
}

/// One cell.
enum One<'de> {
    Integer(i64),
    Float(f64),
    Text(Cow<'de, str>),
    Other(Json),
}

/// Gathers the cells of a column, in the cheapest form that says all of them.
struct Builder {
    rows: usize,
    cells: Option<Cells>,
}

impl Builder {
    fn new(rows: usize) -> Self {
        Self { rows, cells: None }
    }

    fn push(&mut self, one: One<'_>) {
        match (&mut self.cells, one) {
            (Some(Cells::Integers(cells)), One::Integer(n)) => cells.push(n),
            (Some(Cells::Floats(cells)), One::Float(f)) => cells.push(f),
            (Some(Cells::Texts(cells)), One::Text(text)) => cells.push(&text),
            (Some(Cells::Mixed(cells)), one) => cells.push(one.into_cell()),
            (Some(_), one) => {
                self.mix();
                self.push(one);
            }
            (None, one) => {
                self.cells = Some(match one {
                    One::Integer(_) => Cells::Integers(Vec::with_capacity(self.rows)),
                    One::Float(_) => Cells::Floats(Vec::with_capacity(self.rows)),
                    One::Text(_) => Cells::Texts(Texts::default()),
                    One::Other(_) => Cells::Mixed(Vec::with_capacity(self.rows)),
                });
                self.push(one);
            }
        }
    }

    fn mix(&mut self) {
        let cells = self.cells.take().unwrap_or(Cells::Mixed(Vec::new()));
        self.cells = Some(Cells::Mixed((0..cells.len()).map(|row| cells.at(row).into_owned()).collect()));
    }

    fn finish(self) -> Cells {
        self.cells.unwrap_or(Cells::Mixed(Vec::new()))
    }
}

impl One<'_> {
    fn into_cell(self) -> Cell {
        Cell::Json(match self {
            Self::Integer(n) => n.into(),
            Self::Float(f) => f.into(),
            Self::Text(text) => Json::String(text.into_owned()),
            Self::Other(json) => json,
        })
    }
}

struct Columns;

impl<'de> Visitor<'de> for Columns {
    type Value = Vec<(String, Column)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map of columns")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut columns: Self::Value = Vec::new();
        // Columns of one frame are of one length.
        let mut rows = 0;
        while let Some(name) = map.next_key::<String>()? {
            let column = map.next_value_seed(ColumnSeed { rows })?;
            if let Column::List(cells) = &column {
                rows = cells.len();
            }
            // Of a name that comes twice the later counts, as in every JSON object.
            match columns.iter_mut().find(|(known, _)| *known == name) {
                Some((_, known)) => *known = column,
                None => columns.push((name, column)),
            }
        }
        Ok(columns)
    }
}

struct ColumnSeed {
    rows: usize,
}

impl<'de> de::DeserializeSeed<'de> for ColumnSeed {
    type Value = Column;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Column, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ColumnSeed {
    type Value = Column;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a column")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Column, A::Error> {
        let mut builder = Builder::new(self.rows);
        while let Some(one) = seq.next_element::<One<'de>>()? {
            builder.push(one);
        }
        Ok(Column::List(builder.finish()))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Column, A::Error> {
        serde_json::Map::deserialize(MapAccessDeserializer::new(map)).map(Column::Indexed)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Column, E> {
        Ok(Column::Other)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Column, E> {
        Ok(Column::Other)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Column, E> {
        Ok(Column::Other)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Column, E> {
        Ok(Column::Other)
    }

    fn visit_str<E>(self, _: &str) -> Result<Column, E> {
        Ok(Column::Other)
    }

    fn visit_unit<E>(self) -> Result<Column, E> {
        Ok(Column::Other)
    }
}

impl<'de> Deserialize<'de> for One<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OneVisitor)
    }
}

struct OneVisitor;

impl<'de> Visitor<'de> for OneVisitor {
    type Value = One<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a cell")
    }

    fn visit_bool<E>(self, v: bool) -> Result<One<'de>, E> {
        Ok(One::Other(v.into()))
    }

    fn visit_i64<E>(self, v: i64) -> Result<One<'de>, E> {
        Ok(One::Integer(v))
    }

    fn visit_u64<E>(self, v: u64) -> Result<One<'de>, E> {
        Ok(i64::try_from(v).map_or_else(|_| One::Other(v.into()), One::Integer))
    }

    fn visit_f64<E>(self, v: f64) -> Result<One<'de>, E> {
        Ok(One::Float(v))
    }

    fn visit_borrowed_str<E>(self, v: &'de str) -> Result<One<'de>, E> {
        Ok(One::Text(v.into()))
    }

    fn visit_str<E>(self, v: &str) -> Result<One<'de>, E> {
        Ok(One::Text(v.to_owned().into()))
    }

    fn visit_unit<E>(self) -> Result<One<'de>, E> {
        Ok(One::Other(Json::Null))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<One<'de>, A::Error> {
        Json::deserialize(SeqAccessDeserializer::new(seq)).map(One::Other)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<One<'de>, A::Error> {
        Json::deserialize(MapAccessDeserializer::new(map)).map(One::Other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn read(df: &Json) -> Result<Frame, String> {
        serde_json::from_str::<Df>(&df.to_string()).map(|df| df.0).map_err(|e| e.to_string())
    }

    #[test]
    fn both_shapes_of_a_frame_are_the_same_rows() {
        let lists = read(&json!({"a": [1, 2], "b": ["x", null]})).expect("lists");
        let dicts = read(&json!({"a": {"7": 1, "3": 2}, "b": {"3": null, "7": "x"}})).expect("dicts");
        assert_eq!(format!("{lists:?}"), format!("{dicts:?}"));
        assert_eq!(lists.rows, 2);
    }

    #[test]
    fn a_frame_that_pandas_would_refuse_is_refused_by_name() {
        for (df, word) in [
            (json!({"a": [1], "b": [1, 2]}), "'b'"),
            (json!({"a": 1}), "'a'"),
            (json!({"a": null}), "'a'"),
            (json!({"a": "text"}), "'a'"),
            (json!({"a": {"0": 1}, "b": {"1": 1}}), "'b'"),
        ] {
            let error = read(&df).expect_err(word);
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn a_column_of_one_kind_is_one_piece_of_memory() {
        let frame = read(&json!({"i": [1, -2], "f": [1.5, 2.0], "t": ["a", "b\n"], "m": [1, 2.5]})).expect("reads");
        let kinds: Vec<_> = frame
            .columns
            .iter()
            .map(|(_, cells)| match cells {
                Cells::Integers(_) => 'i',
                Cells::Floats(_) => 'f',
                Cells::Texts(_) => 't',
                Cells::Mixed(_) => 'm',
            })
            .collect();
        assert_eq!(kinds, ['i', 'f', 't', 'm']);
    }

    fn cell() -> impl Strategy<Value = Json> {
        let leaf = prop_oneof![
            Just(Json::Null),
            any::<bool>().prop_map(Json::from),
            any::<i64>().prop_map(Json::from),
            any::<u64>().prop_map(Json::from),
            any::<f64>().prop_map(Json::from),
            "[a\"\\\\é]{0,4}".prop_map(Json::from),
        ];
        prop_oneof![
            8 => leaf.clone(),
            1 => proptest::collection::vec(leaf.clone(), 0..3).prop_map(Json::from),
            1 => proptest::collection::vec(("[ab]", leaf), 0..3)
                .prop_map(|fields| Json::Object(fields.into_iter().collect())),
        ]
    }

    proptest! {
        /// Whatever form a column takes, its cells are those of the body.
        #[test]
        fn cells_are_those_of_the_body(cells in proptest::collection::vec(cell(), 0..6), from in 0usize..6) {
            // Often of one kind at first.
            let cells: Vec<Json> = (0..from).map(|n| json!(n)).chain(cells).collect();
            let frame = read(&json!({ "a": cells })).expect("reads");
            prop_assert_eq!(frame.rows, cells.len());
            for (row, cell) in cells.iter().enumerate() {
                let read = frame.columns[0].1.at(row);
                prop_assert!(matches!(&*read, Cell::Json(json) if json == cell), "{read:?} of {cell}");
            }
        }
    }
}
