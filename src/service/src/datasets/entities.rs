//! The entity rows of a dataset job, as its request writes them: keys and times in text. Decides from
//! values alone.
//!
//! Source: `build_entity_df_from_inline` and `coerce_value` in `feast/dataset_utils.py`. A column is of
//! integers where every value is one, of numbers where every value is one, and else of text (pandas mixes).

use model::ports::{EntityRows, TypedColumn};
use model::value::{NULL, ValueType, proto_value::Val};
use model::{Error, Result, Timestamp, Value};
use proto::registry::CreateDatasetFromRetrievalRequest as Request;

/// Entity rows that are given in the request.
const INLINE: &str = "inline";

/// The entity rows that a request asks for; `now` is the time of rows without one.
///
/// Errors: no values, keys named twice, a time that cannot be read.
pub(super) fn rows(request: &Request, now: Timestamp) -> Result<EntityRows> {
    if request.entity_source_type != INLINE {
        return Ok(EntityRows::File(request.entity_source_path.clone()));
    }
    let keys = &request.entity_keys;
    let cells = cells(keys.len(), &request.entity_values);
    let count = cells.first().map_or(0, Vec::len);
    if count == 0 {
        return Err(Error::invalid("No entity values could be parsed from the input."));
    }
    let columns = keys.iter().zip(cells).map(|(key, texts)| column(key, &texts)).collect();
    Ok(EntityRows::Given { columns, times: times(&request.start_date, &request.end_date, count, now)? })
}

/// What is wrong with a request's entity rows before anything is read.
///
/// Errors: as the REST face of Feast says it (`feast/api/registry/rest/saved_datasets.py`).
pub(super) fn check(request: &Request) -> Result<()> {
    let missing =
        |what: &str| Err(Error::invalid(format!("{what} is required when entity_source_type is '{INLINE}'.")));
    if request.entity_source_type != INLINE {
        if request.entity_source_path.trim().is_empty() {
            let kind = &request.entity_source_type;
            return Err(Error::invalid(format!("entity_source_path is required when entity_source_type is '{kind}'.")));
        }
        return Ok(());
    }
    if request.entity_keys.is_empty() {
        return missing("entity_keys");
    }
    if request.entity_values.trim().is_empty() {
        return missing("entity_values");
    }
    let mut seen = std::collections::BTreeSet::new();
    match request.entity_keys.iter().find(|key| key.is_empty() || !seen.insert(*key)) {
        Some(key) => Err(Error::invalid(format!("entity_keys: '{key}' is empty or there twice"))),
        None => Ok(()),
    }
}

/// Column by column: of one key, values by comma or line; of several, a line for each row.
fn cells(keys: usize, text: &str) -> Vec<Vec<Option<String>>> {
    let words = |text: &str| -> Vec<String> { text.split(',').map(|word| word.trim().to_owned()).collect() };
    if keys == 1 {
        let values = words(&text.replace('\n', ","));
        return vec![values.into_iter().filter(|v| !v.is_empty()).map(Some).collect()];
    }
    let lines: Vec<Vec<String>> = text.lines().filter(|line| !line.trim().is_empty()).map(words).collect();
    (0..keys).map(|key| lines.iter().map(|line| line.get(key).cloned()).collect()).collect()
}

/// `name=value` lines, each a column of one value; of lines with the same name the last.
pub(super) fn constants(request: &Request) -> Vec<TypedColumn> {
    let lines = request.extra_columns.lines().filter_map(|line| line.split_once('='));
    let named = lines.map(|(name, value)| (name.trim(), value.trim())).filter(|(name, _)| !name.is_empty());
    let mut columns: Vec<TypedColumn> = Vec::new();
    for (name, value) in named {
        columns.retain(|c| c.name != name);
        columns.push(column(name, &[Some(value.to_owned())]));
    }
    columns
}

fn column(name: &str, texts: &[Option<String>]) -> TypedColumn {
    let each = |read: &dyn Fn(&str) -> Option<Val>| -> Option<Vec<Value>> {
        let value = |text: &Option<String>| match text {
            None => Some(NULL),
            Some(text) => read(text).map(|val| Value { val: Some(val) }),
        };
        texts.iter().map(value).collect()
    };
    let integers = each(&|text| text.parse().ok().map(Val::Int64Val)).map(|v| (ValueType::Int64, v));
    let numbers = || each(&|text| text.parse().ok().map(Val::DoubleVal)).map(|v| (ValueType::Double, v));
    let (value_type, values) = integers.or_else(numbers).unwrap_or_else(|| {
        (ValueType::String, each(&|text| Some(Val::StringVal(text.to_owned()))).unwrap_or_default())
    });
    TypedColumn { name: name.to_owned(), value_type, values }
}

/// Spread evenly from start to end; all at the end where there is no start; else now.
fn times(start: &str, end: &str, count: usize, now: Timestamp) -> Result<Vec<Timestamp>> {
    let read = |text: &str| if text.is_empty() { Ok(None) } else { Timestamp::parse(text).map(Some) };
    let (start, end) = (read(start)?, read(end)?);
    Ok(match (start, end) {
        (Some(start), Some(end)) if count > 1 => {
            let (from, span) = (i128::from(start.micros()), i128::from(end.micros()) - i128::from(start.micros()));
            let at = |row: usize| from + span * row as i128 / (count as i128 - 1);
            (0..count).map(|row| Timestamp(i64::try_from(at(row)).unwrap_or(end.micros()))).collect()
        }
        (_, Some(end)) => vec![end; count],
        (_, None) => vec![now; count],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(keys: &[&str], values: &str) -> Request {
        Request {
            entity_source_type: INLINE.into(),
            entity_keys: keys.iter().map(|k| (*k).to_owned()).collect(),
            entity_values: values.into(),
            ..Request::default()
        }
    }

    fn given(request: &Request) -> (Vec<TypedColumn>, Vec<i64>) {
        match rows(request, Timestamp(7)).expect("reads") {
            EntityRows::Given { columns, times } => (columns, times.into_iter().map(Timestamp::micros).collect()),
            EntityRows::File(_) => panic!("values were given"),
        }
    }

    fn types(columns: &[TypedColumn]) -> Vec<(&str, ValueType)> {
        columns.iter().map(|c| (c.name.as_str(), c.value_type)).collect()
    }

    #[test]
    fn one_key_comes_by_comma_or_line() {
        let (columns, times) = given(&request(&["id"], " 1, 2\n3,,\n"));
        assert_eq!(types(&columns), [("id", ValueType::Int64)]);
        assert_eq!((columns[0].values.len(), times), (3, vec![7, 7, 7]));
        assert_eq!(types(&given(&request(&["id"], "1, 2.5")).0), [("id", ValueType::Double)]);
        assert_eq!(types(&given(&request(&["id"], "1, x")).0), [("id", ValueType::String)]);
    }

    #[test]
    fn several_keys_come_line_by_line_and_what_is_missing_is_null() {
        let (columns, _) = given(&request(&["a", "b"], "1, x\n\n2\n"));
        assert_eq!(types(&columns), [("a", ValueType::Int64), ("b", ValueType::String)]);
        assert_eq!(columns[1].values[1], NULL);
        assert!(columns.iter().all(|c| c.values.len() == 2));
    }

    #[test]
    fn constants_are_lines_with_a_name_and_a_value() {
        let lines = "rate = 7\nnothing\n=3\nkind=k=l\nrate=0.5";
        let found = constants(&Request { extra_columns: lines.into(), ..Request::default() });
        assert_eq!(types(&found), [("kind", ValueType::String), ("rate", ValueType::Double)]);
        assert_eq!(found[0].values[0].val, Some(Val::StringVal("k=l".into())));
        assert!(found.iter().all(|c| c.values.len() == 1));
    }

    #[test]
    fn times_are_spread_from_start_to_end() {
        let mut asked = request(&["id"], "1,2,3");
        asked.end_date = "1970-01-01T00:00:10Z".into();
        assert_eq!(given(&asked).1, [10_000_000; 3]);
        asked.start_date = "1970-01-01".into();
        assert_eq!(given(&asked).1, [0, 5_000_000, 10_000_000]);
        asked.entity_values = "1".into();
        assert_eq!(given(&asked).1, [10_000_000]);
        asked.end_date = "soon".into();
        assert!(rows(&asked, Timestamp(0)).expect_err("no time").message().contains("soon"));
    }

    #[test]
    fn what_is_missing_is_named() {
        for (asked, want) in [
            (request(&[], "1"), "entity_keys"),
            (request(&["id"], " \n"), "entity_values"),
            (request(&["id", "id"], "1,1"), "'id'"),
            (Request { entity_source_type: "reference".into(), ..Request::default() }, "entity_source_path"),
        ] {
            let error = check(&asked).expect_err(want);
            assert!(error.message().contains(want), "{error}");
        }
        let empty = rows(&request(&["id"], ","), Timestamp(0)).expect_err("nothing there");
        assert_eq!(empty.message(), "No entity values could be parsed from the input.");
    }
}
