//! References to features as a client writes them: `view:feature`, `view@v2:feature`, `view@latest:feature`.
//! Source: `_parse_feature_or_view_ref` in `feast/utils.py`.

use crate::error::{Error, Result};

/// A reference to one feature of one view.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FeatureRef {
    /// The view's name, or its alias in a projection.
    pub view: String,
    /// The version asked for (`@v2` is 2); `None` is the latest.
    pub version: Option<i32>,
    /// The feature's name.
    pub feature: String,
}

impl FeatureRef {
    /// Reads `view[@vN]:feature`.
    pub fn parse(text: &str) -> Result<Self> {
        let (view, feature) =
            text.split_once(':').filter(|(v, f)| !v.is_empty() && !f.is_empty()).ok_or_else(|| {
                Error::invalid(format!("Invalid feature reference '{text}'. Expected format: 'feature_view:feature'"))
            })?;
        let (view, version) = match view.rsplit_once('@') {
            None => (view, None),
            Some((view, tag)) if tag.is_empty() || tag.eq_ignore_ascii_case("latest") => (view, None),
            Some((name, tag)) => match tag.strip_prefix(['v', 'V']).and_then(number) {
                Some(version) => (name, Some(version)),
                None => {
                    return Err(Error::invalid(format!(
                        "Invalid version '{tag}' in feature reference '{text}'. Write it as view@v2:feature or \
                         view@latest:feature"
                    )));
                }
            },
        };
        Ok(Self { view: view.to_owned(), version, feature: feature.to_owned() })
    }
}

/// Digits and nothing else, as a version number.
fn number(digits: &str) -> Option<i32> {
    digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_versions_and_refuses_the_rest() {
        let parsed = FeatureRef::parse("stats@v2:trips").expect("valid");
        assert_eq!((parsed.view.as_str(), parsed.version, parsed.feature.as_str()), ("stats", Some(2), "trips"));
        assert_eq!(FeatureRef::parse("stats@latest:trips").expect("valid").version, None);
        assert_eq!(FeatureRef::parse("stats@LATEST:trips").expect("valid").version, None);
        for bad in ["stats", ":trips", "stats:", "stats@two:trips", "stats@2:trips", "stats@v-2:trips", "s@v:t", ""] {
            let error = FeatureRef::parse(bad).expect_err(bad);
            assert!(error.message().contains(bad), "{}", error.message());
        }
    }
}
