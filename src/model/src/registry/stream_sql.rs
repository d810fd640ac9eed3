//! Where a stream view's SQL stands. Feast names two modes of it: `spark_sql`, whose text its SDK keeps as the function's
//! `udf_string`, and `sql`, with which its SDK takes no function, so that the text stands in a tag. Knows no SQL.

use std::sync::Arc;

use proto::feast::core;
use proto::feast::core::feature_transformation_v2::Transformation;

/// The tag that has the text where there is no function.
const TAG: &str = "larder.sql";

/// The SQL of a stream view, and whether it has another transformation than that: Python, Substrait, a mode of SQL
/// without a text, two texts, or a text without the mode.
pub(super) fn of(spec: &core::StreamFeatureViewSpec) -> (Option<Arc<str>>, bool) {
    #[allow(deprecated)] // older registries have only this one
    let function = spec.user_defined_function.as_ref().filter(|f| !f.body.is_empty() || !f.body_text.is_empty());
    let transformation = spec.feature_transformation.as_ref().and_then(|t| t.transformation.as_ref());
    let is_sql = matches!(spec.mode.to_ascii_lowercase().as_str(), "sql" | "spark_sql");
    if !is_sql {
        return (None, function.is_some() || transformation.is_some() || spec.tags.contains_key(TAG));
    }
    let of_transformation = match transformation {
        Some(Transformation::UserDefinedFunction(function)) => Some(function.body_text.as_str()),
        Some(_) => return (None, true),
        None => None,
    };
    let texts = [of_transformation, function.map(|f| f.body_text.as_str()), spec.tags.get(TAG).map(String::as_str)];
    let mut texts = texts.into_iter().flatten().map(str::trim).filter(|text| !text.is_empty());
    let text = texts.next().filter(|text| is_query(text) && texts.all(|other| other == *text));
    (text.map(Arc::from), text.is_none())
}

/// Whether it begins as a query does: a Python function's source does not.
fn is_query(text: &str) -> bool {
    let word = text.trim_start_matches(['(', ' ']).split(|c: char| !c.is_ascii_alphabetic()).next().unwrap_or_default();
    word.eq_ignore_ascii_case("select") || word.eq_ignore_ascii_case("with")
}

#[cfg(test)]
#[allow(deprecated)]
mod tests {
    use super::*;

    fn spec(mode: &str, text: Option<&str>, tag: Option<&str>) -> core::StreamFeatureViewSpec {
        let function = text.map(|text| core::UserDefinedFunction {
            name: "f".to_owned(),
            body: vec![1],
            body_text: text.to_owned(),
        });
        core::StreamFeatureViewSpec {
            mode: mode.to_owned(),
            user_defined_function: function,
            tags: tag.map(|tag| (TAG.to_owned(), tag.to_owned())).into_iter().collect(),
            ..Default::default()
        }
    }

    #[test]
    fn the_text_is_the_functions_or_the_tags() {
        let one = "SELECT a FROM s";
        let found = Some(Arc::from(one));
        assert_eq!(of(&spec("spark_sql", Some(one), None)), (found.clone(), false));
        assert_eq!(of(&spec("sql", None, Some("  SELECT a FROM s "))), (found.clone(), false));
        assert_eq!(of(&spec("SQL", Some(one), Some(one))), (found, false), "twice the same");
        let with = "with x as (select 1) select * from x";
        assert_eq!(of(&spec("sql", None, Some(with))), (Some(Arc::from(with)), false));
    }

    #[test]
    fn what_is_no_sql_is_another_transformation() {
        assert_eq!(of(&spec("spark_sql", Some("def f(t):\n  return 'select 1'"), None)), (None, true), "Python");
        assert_eq!(of(&spec("sql", None, None)), (None, true), "no text");
        assert_eq!(of(&spec("sql", Some("select 1"), Some("select 2"))), (None, true), "two texts");
        assert_eq!(of(&spec("python", Some("select 1"), None)), (None, true), "another mode");
        assert_eq!(of(&spec("python", None, Some("select 1"))), (None, true), "no mode of SQL");
        assert_eq!(of(&spec("", None, None)), (None, false));
    }
}
