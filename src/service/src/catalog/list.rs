//! Listing registered objects: tags, order, page. Decides from values alone.
//!
//! Source: `apply_pagination_and_sorting` of `feast/registry_server.py`. Without an order, objects come
//! by kind and name. An attribute that nothing can be ordered by is refused (Feast leaves the order as
//! it is and says nothing).

use std::collections::BTreeMap;

use model::ports::{Object, ObjectKind};
use model::registry::Registry;
use model::{Error, Result, Timestamp};

/// The order and the part of a list that is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Paging {
    /// The attribute to order by; empty is the natural order.
    pub sort_by: String,
    /// `desc` in any case is descending; all else ascending.
    pub sort_order: String,
    /// The page, from 1; 0 is everything.
    pub page: u32,
    /// How many to a page; 0 is everything.
    pub limit: u32,
}

/// A part of a list, and where it stands in the whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page<T> {
    /// The items of the page.
    pub items: Vec<T>,
    /// The page, from 1; 0 where no page was asked for.
    pub page: u32,
    /// How many to a page; 0 where no page was asked for.
    pub limit: u32,
    /// How many there are on all pages.
    pub total: usize,
    /// How many pages there are; 0 of nothing.
    pub pages: usize,
}

/// What a list can be ordered by.
pub trait Sortable {
    /// The attributes by name, for the error.
    const ATTRIBUTES: &'static [&'static str];

    /// The attribute's value as a text that orders as the values do; `None` where it has none.
    fn attribute(&self, name: &str) -> Result<Option<String>>;
}

impl Paging {
    /// Orders the items and takes the page.
    ///
    /// Errors: `InvalidArgument` for an attribute that these items do not have.
    pub fn apply<T: Sortable>(&self, items: Vec<T>) -> Result<Page<T>> {
        let total = items.len();
        let items = self.ordered(items)?;
        if items.is_empty() {
            return Ok(Page { items, page: 0, limit: 0, total: 0, pages: 0 });
        }
        if self.page == 0 || self.limit == 0 {
            return Ok(Page { items, page: 0, limit: 0, total, pages: 1 });
        }
        let (page, limit) = (self.page as usize, self.limit as usize);
        let items = items.into_iter().skip((page - 1).saturating_mul(limit)).take(limit).collect();
        Ok(Page { items, page: self.page, limit: self.limit, total, pages: total.div_ceil(limit) })
    }

    fn ordered<T: Sortable>(&self, items: Vec<T>) -> Result<Vec<T>> {
        let name = self.sort_by.trim();
        if name.is_empty() {
            return Ok(items);
        }
        if !T::ATTRIBUTES.contains(&name) {
            let known = T::ATTRIBUTES.join(", ");
            return Err(Error::invalid(format!("cannot sort by '{name}': choose one of {known}")));
        }
        let mut keyed = items
            .into_iter()
            .map(|item| Ok((item.attribute(name)?.map(|text| text.to_lowercase()), item)))
            .collect::<Result<Vec<_>>>()?;
        // both ways stable: equal items stay in the order they came
        if self.sort_order.eq_ignore_ascii_case("desc") {
            keyed.sort_by(|(a, _), (b, _)| b.cmp(a));
        } else {
            keyed.sort_by(|(a, _), (b, _)| a.cmp(b));
        }
        Ok(keyed.into_iter().map(|(_, item)| item).collect())
    }
}

impl Sortable for Object {
    const ATTRIBUTES: &'static [&'static str] =
        &["name", "project", "description", "owner", "created_timestamp", "last_updated_timestamp"];

    fn attribute(&self, name: &str) -> Result<Option<String>> {
        let layout = self.kind.layout();
        Ok(match name {
            "name" => Some(self.name.clone()),
            "project" => Some(self.project.clone()),
            "description" => Some(self.text(layout.description)?),
            "owner" => Some(self.text(layout.owner)?),
            "created_timestamp" => self.created()?.map(in_order),
            "last_updated_timestamp" => self.updated()?.map(in_order),
            _ => None,
        })
    }
}

/// A time as a text that orders as times do.
pub(super) fn in_order(time: Timestamp) -> String {
    format!("{:020}", i128::from(time.micros()) - i128::from(i64::MIN))
}

/// All objects of these kinds in a project that have all these tags, kind by kind, by name. All
/// projects where `project` is `None`.
///
/// Errors: an object that is damaged.
pub fn objects(
    registry: &Registry,
    project: Option<&str>,
    kinds: &[ObjectKind],
    tags: &BTreeMap<String, String>,
) -> Result<Vec<Object>> {
    let mut out = Vec::new();
    for kind in kinds {
        let projects = registry.projects.iter().filter(|(name, _)| project.is_none_or(|p| p == name.as_str()));
        for ((_, _), object) in projects.flat_map(|(_, p)| &p.objects).filter(|((k, _), _)| k == kind) {
            let mut asked = tags.iter();
            let has = if tags.is_empty() { BTreeMap::new() } else { object.tags()? };
            if asked.all(|(key, value)| has.get(key) == Some(value)) {
                out.push(object.clone());
            }
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    struct Word(String);

    impl Sortable for Word {
        const ATTRIBUTES: &'static [&'static str] = &["text"];

        fn attribute(&self, _: &str) -> Result<Option<String>> {
            Ok((!self.0.is_empty()).then(|| self.0.clone()))
        }
    }

    proptest! {
        /// The pages, one behind the other, are the whole list in order.
        #[test]
        fn pages_make_up_the_list(words in proptest::collection::vec("[a-cA-C]{0,2}", 0..20), limit in 1u32..7, desc in any::<bool>()) {
            let paging = |page, limit| Paging {
                sort_by: "text".into(),
                sort_order: if desc { "DESC" } else { "asc" }.into(),
                page,
                limit,
            };
            let list = || words.iter().cloned().map(Word).collect::<Vec<_>>();
            let whole = paging(0, 0).apply(list()).expect("sorts");
            let mut oracle = words.clone();
            oracle.sort_by_key(|w| w.to_lowercase());
            if desc {
                oracle.sort_by_key(|w| std::cmp::Reverse(w.to_lowercase()));
            }
            let lower = |words: Vec<String>| words.into_iter().map(|w| w.to_lowercase()).collect::<Vec<_>>();
            prop_assert_eq!(lower(whole.items.iter().map(|w| w.0.clone()).collect()), lower(oracle));
            let mut joined = Vec::new();
            for page in 1..=whole.items.len().div_ceil(limit as usize) {
                let page = paging(page as u32, limit).apply(list()).expect("sorts");
                prop_assert_eq!(page.pages, whole.items.len().div_ceil(limit as usize));
                prop_assert_eq!(page.total, whole.items.len());
                joined.extend(page.items.into_iter().map(|w| w.0));
            }
            prop_assert_eq!(joined, whole.items.into_iter().map(|w| w.0).collect::<Vec<_>>());
        }
    }

    #[test]
    fn an_unknown_attribute_is_refused_with_the_known_ones() {
        let paging = Paging { sort_by: "size".into(), ..Paging::default() };
        let error = paging.apply(Vec::<Object>::new()).expect_err("refused");
        assert!(error.message().contains("'size'") && error.message().contains("last_updated_timestamp"), "{error}");
    }

    #[test]
    fn a_page_beyond_the_end_is_empty_and_counts_on() {
        let paging = Paging { page: u32::MAX, limit: 2, ..Paging::default() };
        let page = paging.apply(Vec::<Word>::new()).expect("pages");
        assert_eq!((page.items.len(), page.total, page.pages), (0, 0, 0));
        let words = ["a", "b", "c"].map(|w| Word(w.into()));
        let page = paging.apply(words.into()).expect("pages");
        assert_eq!((page.items.len(), page.total, page.pages), (0, 3, 2));
    }

    #[test]
    fn times_order_as_text() {
        let times = [i64::MIN, -5, 0, 3, 1_700_000_000_000_000, i64::MAX];
        let texts = times.map(|t| in_order(Timestamp(t)));
        assert!(texts.is_sorted(), "{texts:?}");
    }
}
