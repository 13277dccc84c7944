//! Lists that the API sends in pages. A list counts only when it is complete.

use std::collections::BTreeMap;

use crate::agent::client::endpoint::Endpoint;
use crate::agent::digitalocean::shapes::{Item, Page};
use crate::printable;

/// A list of which some pages have arrived.
#[derive(Debug)]
pub(super) struct Listing<T> {
    items: BTreeMap<String, T>,
    total: Option<usize>,
}

/// What follows a page.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Following {
    Complete,
    NextPage,
}

/// Why the pages are not a complete list.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum IncompleteList {
    #[error("the next page is on another host: {0}")]
    ForeignLink(String),
    #[error("its total changed from {0} to {1} between two pages")]
    ChangedTotal(usize, usize),
    #[error("it has {0} items, and its total is {1}")]
    WrongTotal(usize, usize),
    #[error("two pages have the same item {0}")]
    Repeated(String),
    #[error("it has more than {MAX_ITEMS} items")]
    TooLong,
}

impl<T: Item> Listing<T> {
    pub(super) const fn new() -> Self {
        Self { items: BTreeMap::new(), total: None }
    }

    /// Adds the next page.
    ///
    /// # Errors
    /// If the pages cannot become a complete list.
    pub(super) fn add(&mut self, page: Page<T>, endpoint: &Endpoint) -> Result<Following, IncompleteList> {
        if let Some(link) = page.next().filter(|link| !endpoint.has_origin_of(link)) {
            return Err(IncompleteList::ForeignLink(printable::quoted(link)));
        }
        let total = page.total();
        let known = *self.total.get_or_insert(total);
        if known != total {
            return Err(IncompleteList::ChangedTotal(known, total));
        }
        if total > MAX_ITEMS {
            return Err(IncompleteList::TooLong);
        }
        // A page without items would repeat for ever.
        let has_more = page.next().is_some() && !page.items.is_empty();
        for item in page.items {
            let id = item.id();
            if self.items.contains_key(&id) {
                return Err(IncompleteList::Repeated(printable::quoted(id)));
            }
            self.items.insert(id, item);
        }
        match self.items.len() {
            count if count == total => Ok(Following::Complete),
            count if count < total && has_more => Ok(Following::NextPage),
            count => Err(IncompleteList::WrongTotal(count, total)),
        }
    }

    pub(super) fn into_items(self) -> impl Iterator<Item = T> {
        self.items.into_values()
    }
}

/// More than any account has. The pages of such a list would take minutes.
const MAX_ITEMS: usize = 100_000;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::agent::digitalocean::shapes::Droplet;

    const NEXT: Option<&str> = Some("https://do.test/v2/droplets?page=2");

    fn page(ids: &[u64], total: usize, next: Option<&str>) -> Page<Droplet> {
        let droplets: Vec<_> = ids.iter().map(|id| json!({ "id": id })).collect();
        let links = next.map_or(json!({}), |next| json!({ "pages": { "next": next } }));
        serde_json::from_value(json!({ "droplets": droplets, "links": links, "meta": { "total": total } })).unwrap()
    }

    fn add(pages: Vec<Page<Droplet>>) -> Result<Following, IncompleteList> {
        let endpoint = Endpoint::parse("https://do.test").unwrap();
        let mut listing = Listing::new();
        let mut last = Following::NextPage;
        for page in pages {
            last = listing.add(page, &endpoint)?;
        }
        Ok(last)
    }

    #[test]
    fn list_counts_when_it_has_as_many_items_as_its_total() {
        use IncompleteList::{ChangedTotal, ForeignLink, Repeated, TooLong, WrongTotal};
        for (pages, expected) in [
            (vec![page(&[], 0, None)], Ok(Following::Complete)),
            (vec![page(&[1, 2], 3, NEXT)], Ok(Following::NextPage)),
            (vec![page(&[1, 2], 3, NEXT), page(&[3], 3, None)], Ok(Following::Complete)),
            (vec![page(&[1, 2], 2, NEXT)], Ok(Following::Complete)),
            (vec![page(&[1, 2], 3, None)], Err(WrongTotal(2, 3))),
            (vec![page(&[1, 2], 1, None)], Err(WrongTotal(2, 1))),
            (vec![page(&[], 3, NEXT)], Err(WrongTotal(0, 3))),
            (vec![page(&[1, 2], 3, NEXT), page(&[3], 4, NEXT)], Err(ChangedTotal(3, 4))),
            (vec![page(&[1, 2], 3, NEXT), page(&[1, 2], 3, NEXT)], Err(Repeated("1".to_owned()))),
            (vec![page(&[1], 1_000_000, NEXT)], Err(TooLong)),
            (
                vec![page(&[1, 2], 2, Some("https://evil.test/v2/droplets?page=2"))],
                Err(ForeignLink("https://evil.test/v2/droplets?page=2".to_owned())),
            ),
            (
                vec![page(&[1, 2], 3, Some("http://do.test/v2/droplets?page=2"))],
                Err(ForeignLink("http://do.test/v2/droplets?page=2".to_owned())),
            ),
        ] {
            assert_eq!(add(pages), expected);
        }
    }

    #[test]
    fn page_without_a_total_is_invalid() {
        for body in [r#"{"droplets":[]}"#, r#"{"droplets":[],"meta":{}}"#, r#"{"meta":{"total":0}}"#, "[]", "{"] {
            assert!(serde_json::from_str::<Page<Droplet>>(body).is_err(), "{body}");
        }
    }

    proptest! {
        #[test]
        fn complete_list_always_has_its_total(ids in proptest::collection::vec(0_u64..30, 0..30), total in 0_usize..30, size in 1_usize..10) {
            let endpoint = Endpoint::parse("https://do.test").unwrap();
            let mut listing = Listing::new();
            for part in ids.chunks(size) {
                if listing.add(page(part, total, NEXT), &endpoint) == Ok(Following::Complete) {
                    prop_assert_eq!(listing.into_items().count(), total);
                    return Ok(());
                }
            }
        }
    }
}
