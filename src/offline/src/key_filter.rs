//! Which rows of a source can have one of the entity frame's keys, as an expression that Parquet
//! statistics, page indexes and Bloom filters can be held against. Knows no files and no join.

use std::collections::BTreeSet;

use arrow::array::{ArrayRef, AsArray};
use arrow::datatypes::{DataType, Int64Type};
use datafusion::logical_expr::{Expr, lit};

use crate::engine::ident;
use crate::keys::KeyType;

/// So many distinct values are named one by one; of more, the least and the greatest are.
const NAMED: usize = 256;

/// For the entity frame's `values` of a key part ([`KeyType::of_frame`]); `None` where the source's
/// column is of a type whose order or casts are not those of the comparable form.
pub(crate) fn of(name: &str, key: KeyType, column: &DataType, values: &ArrayRef) -> Option<Expr> {
    use DataType as D;
    match (key, column) {
        // Not of 64 bits unsigned: what is beyond 63 bits there is an error of the source's data.
        (KeyType::Int, D::Int8 | D::Int16 | D::Int32 | D::Int64 | D::UInt8 | D::UInt16 | D::UInt32) => {
            filter(name, values.as_primitive_opt::<Int64Type>()?.iter().flatten())
        }
        (KeyType::Text, D::Utf8 | D::LargeUtf8 | D::Utf8View) => {
            filter(name, values.as_string_opt::<i32>()?.iter().flatten())
        }
        _ => None,
    }
}

fn filter<T: datafusion::logical_expr::Literal + Ord + Copy>(
    name: &str,
    values: impl Iterator<Item = T>,
) -> Option<Expr> {
    let mut named = BTreeSet::new();
    let (mut least, mut greatest) = (None, None);
    for value in values {
        least = Some(least.map_or(value, |l: T| l.min(value)));
        greatest = Some(greatest.map_or(value, |g: T| g.max(value)));
        if named.len() <= NAMED {
            named.insert(value);
        }
    }
    // The range goes along with the names: statistics are held against a short list only.
    let range = ident(name).gt_eq(lit(least?)).and(ident(name).lt_eq(lit(greatest?)));
    if named.len() > NAMED {
        return Some(range);
    }
    Some(range.and(ident(name).in_list(named.into_iter().map(lit).collect(), false)))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Int64Array, StringArray};

    use super::*;

    #[test]
    fn few_keys_are_named_many_are_a_range_and_what_does_not_compare_is_left() {
        let few: ArrayRef = Arc::new(Int64Array::from(vec![Some(7), None, Some(3), Some(7)]));
        let text = of("Id", KeyType::Int, &DataType::Int32, &few).expect("integers").to_string();
        assert!(text.contains("Id IN ([Int64(3), Int64(7)])") && text.contains("Id >= Int64(3)"), "{text}");
        let many: ArrayRef = Arc::new((0..1000).map(Some).collect::<Int64Array>());
        let text = of("Id", KeyType::Int, &DataType::Int64, &many).expect("integers").to_string();
        assert!(!text.contains(" IN ") && text.contains("Id <= Int64(999)"), "{text}");
        let texts: ArrayRef = Arc::new(StringArray::from(vec!["b", "a"]));
        assert!(of("Id", KeyType::Text, &DataType::LargeUtf8, &texts).is_some());
        assert_eq!(of("Id", KeyType::Int, &DataType::UInt64, &few), None);
        assert_eq!(of("Id", KeyType::Text, &DataType::Int64, &texts), None);
        let none: ArrayRef = Arc::new(Int64Array::from(vec![None, None]));
        assert_eq!(of("Id", KeyType::Int, &DataType::Int64, &none), None);
    }
}
