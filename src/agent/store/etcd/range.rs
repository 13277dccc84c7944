//! Reads all keys with a prefix, page by page, as of one revision.

use etcd_client::{GetOptions, GetResponse};

use crate::agent::store::etcd::EtcdEngine;
use crate::agent::store::etcd::connection::Connected;
use crate::agent::store::etcd::failure::{Failure, Kind};
use crate::agent::store::etcd::keys::end_of;
use crate::fleet::store::Entry;

/// All keys with a prefix, and when they were so.
#[derive(Debug)]
pub(super) struct Listing {
    pub(super) entries: Vec<Entry>,
    pub(super) cluster: u64,
    pub(super) revision: i64,
}

/// What is read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Range<'a> {
    pub(super) prefix: &'a str,
    pub(super) keys_only: bool,
    /// The maximum size of all entries in bytes.
    pub(super) limit: usize,
}

impl EtcdEngine {
    pub(super) async fn range(&self, connected: &Connected, range: Range<'_>) -> Result<Listing, Failure> {
        let prefix = self.root.full(range.prefix);
        let mut listing = Listing { entries: Vec::new(), cluster: 0, revision: 0 };
        let (mut from, mut size, mut per_page) = (prefix.clone().into_bytes(), 0_usize, PAGE);
        for _ in 0..MAX_PAGES {
            let mut options =
                GetOptions::new().with_range(end_of(&prefix)).with_limit(per_page).with_revision(listing.revision);
            if range.keys_only {
                options = options.with_keys_only();
            }
            let page = match connected.kv.clone().get(from.clone(), Some(options)).await.map_err(Failure::from) {
                Err(failure) if failure.kind == Kind::TooLong && per_page > SMALL_PAGE => {
                    per_page = SMALL_PAGE;
                    continue;
                }
                page => page?,
            };
            if listing.revision == 0 {
                (listing.cluster, listing.revision) = position(&page)?;
            }
            for found in page.kvs() {
                size = size.saturating_add(found.key().len()).saturating_add(found.value().len());
                if size > range.limit {
                    let limit = range.limit >> 20;
                    let error = format_args!("the keys with the prefix {prefix} have more than {limit} MiB");
                    return Err(Failure::new(Kind::Other, error));
                }
                listing.entries.extend(self.root.entry(found));
            }
            match page.kvs().last() {
                Some(last) if page.more() && last.key() >= from.as_slice() => from = [last.key(), &[0]].concat(),
                _ if page.more() => return Err(invalid("a page makes no progress")),
                _ => return Ok(listing),
            }
        }
        Err(Failure::new(
            Kind::Other,
            format_args!("the keys with the prefix {prefix} have more than {MAX_PAGES} pages"),
        ))
    }
}

/// Cluster and revision of an answer.
fn position(page: &GetResponse) -> Result<(u64, i64), Failure> {
    let header = page.header().filter(|header| header.revision() > 0).ok_or_else(|| invalid("it has no revision"))?;
    Ok((header.cluster_id(), header.revision()))
}

pub(super) fn invalid(error: &str) -> Failure {
    Failure::new(Kind::Other, format_args!("the answer is not valid: {error}"))
}

/// Keys per page. With values of the usual size, a page is far shorter than the maximum length of an answer.
const PAGE: i64 = 100;

/// Keys per page when one was too long. etcd limits a value to 1.5 MiB.
const SMALL_PAGE: i64 = 10;

/// A million keys.
const MAX_PAGES: usize = 10_000;
