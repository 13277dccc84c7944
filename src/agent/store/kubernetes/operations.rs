//! Reads and writes.
//!
//! A write reads the object first, so that a foreign object with its name is found, and then writes on condition of its version.

use std::collections::BTreeSet;
use std::sync::PoisonError;
use std::time::Duration;

use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;

use crate::agent::kubernetes::failure::Failure;
use crate::agent::store::kubernetes::KubernetesEngine;
use crate::agent::store::kubernetes::object::{Kind, Object, Part, Place, selector};
use crate::agent::store::kubernetes::request::{Requests, Written};
use crate::agent::store::limits::{MAX_ANSWER, text};
use crate::fleet::store::{ALIVE, ANSWERS, CHUNKS, Entry, Expected, MEMBERS, Outcome, SHARED};

/// A key, its object as it is, and where it is written.
struct Target {
    place: Place,
    requests: Requests,
    object: Option<Object>,
}

impl KubernetesEngine {
    pub(super) async fn get(&self, keys: &[String]) -> Result<Outcome, Failure> {
        let keys: BTreeSet<_> = keys.iter().collect();
        let mut entries = Vec::new();
        for key in keys {
            let target = self.target(key).await?;
            entries.extend(self.entry(key, &target));
        }
        Ok(Outcome::Entries(entries))
    }

    /// Lists all keys that begin so.
    pub(super) async fn list(&self, prefix: &str, has_values: bool) -> Result<Outcome, Failure> {
        let mut entries = Vec::new();
        let mut size = 0_usize;
        for kind in Kind::ALL.into_iter().filter(|kind| may_hold(*kind, prefix)) {
            let collection = self.collection(kind, selector(&self.fleet, prefix)).await?;
            let mut names = BTreeSet::new();
            collection
                .list(&self.connection, |object| {
                    names.extend(object.metadata.name.clone());
                    for entry in self.entries(kind, &object).into_iter().filter(|entry| entry.key.starts_with(prefix)) {
                        let value = if has_values { entry.value } else { String::new() };
                        size = size.saturating_add(entry.key.len()).saturating_add(value.len());
                        entries.push(Entry { value, ..entry });
                    }
                    if size > MAX_ANSWER {
                        let error =
                            format_args!("the keys with the prefix {prefix} have more than {} MiB", MAX_ANSWER >> 20);
                        return Err(Failure::unavailable(error));
                    }
                    Ok(())
                })
                .await?;
            if kind == Kind::Lease {
                self.holders.lock().unwrap_or_else(PoisonError::into_inner).retain(|name| names.contains(name));
            }
        }
        Ok(Outcome::Entries(entries))
    }

    pub(super) async fn put(
        &self,
        (key, value): (&str, &str),
        expected: &Expected,
        seconds: Option<u32>,
    ) -> Result<Outcome, Failure> {
        for _ in 0..MAX_ATTEMPTS {
            let target = self.target(key).await?;
            if let Some(conflict) = self.conflict(key, &target, expected) {
                return Ok(conflict);
            }
            let written = self
                .write(&target, |object| {
                    object.set(target.place.kind, target.place.part, value);
                    object.set_lifetime(seconds);
                    object.mark_as_written();
                })
                .await?;
            if let Written::Done(object) = written {
                if !key.starts_with(SHARED) {
                    self.unwatched().wrote(&object);
                }
                return Ok(done(&object));
            }
        }
        Err(too_many_writers(key))
    }

    /// Takes the Lease of a member, or renews it. A holder that has not renewed it in its time has lost it.
    pub(super) async fn hold(&self, (key, value): (&str, &str), seconds: u32) -> Result<Outcome, Failure> {
        for _ in 0..MAX_ATTEMPTS {
            let target = self.target(key).await?;
            if target.place.part != Part::Holder {
                return Err(Failure::invalid("only keys of members can be held"));
            }
            if let Some(current) = self.entry(key, &target).filter(|current| current.value != value) {
                return Ok(Outcome::Conflict { current: Some(current) });
            }
            let now = OffsetDateTime::now_utc().format(MICRO_TIME).map_err(Failure::invalid)?;
            let written = self
                .write(&target, |object| {
                    object.set(Kind::Lease, Part::Holder, value);
                    object.renew(now.clone(), seconds);
                })
                .await?;
            if let Written::Done(object) = written {
                return Ok(done(&object));
            }
        }
        Err(too_many_writers(key))
    }

    pub(super) async fn delete(&self, key: &str, expected: &Expected) -> Result<Outcome, Failure> {
        for _ in 0..MAX_ATTEMPTS {
            let target = self.target(key).await?;
            let (Some(object), Some(_)) = (&target.object, self.entry(key, &target)) else {
                return Ok(Outcome::Done { version: String::new() });
            };
            if let Some(conflict) = self.conflict(key, &target, expected) {
                return Ok(conflict);
            }
            let mut object = object.clone();
            let written = if object.clear(target.place.part) {
                target.requests.replace(&object).await?
            } else {
                target.requests.delete(&object).await?
            };
            if let Written::Done(_) = written {
                return Ok(Outcome::Done { version: String::new() });
            }
        }
        Err(too_many_writers(key))
    }

    /// Reads the object of a key.
    async fn target(&self, key: &str) -> Result<Target, Failure> {
        let place = Place::of(&self.fleet, key)
            .ok_or_else(|| Failure::invalid(format_args!("{key} is not a key of a fleet in Kubernetes")))?;
        let requests = self.requests(place.kind).await?;
        let object = requests.get(&place.name).await?;
        if object.as_ref().is_some_and(|object| !object.is_at(&self.fleet, &place)) {
            let (kind, name) = (place.kind.name(), &place.name);
            return Err(Failure::invalid(format_args!(
                "the {kind} {name} does not belong to the fleet {}; remove it",
                self.fleet
            )));
        }
        Ok(Target { place, requests, object })
    }

    /// The entry of a key, if it has a value.
    fn entry(&self, key: &str, target: &Target) -> Option<Entry> {
        let object = target.object.as_ref()?;
        self.entries(target.place.kind, object).into_iter().find(|entry| entry.key == key)
    }

    /// All entries that an object holds.
    fn entries(&self, kind: Kind, object: &Object) -> Vec<Entry> {
        let Some(subject) = object.subject(&self.fleet) else { return Vec::new() };
        let keys = match kind {
            Kind::ConfigMap | Kind::Secret => vec![(subject.to_owned(), Part::Data)],
            Kind::Lease => {
                vec![(format!("{MEMBERS}{subject}"), Part::State), (format!("{ALIVE}{subject}"), Part::Holder)]
            }
        };
        let version = object.metadata.resource_version.clone().unwrap_or_default();
        let entry = |(key, part): (String, Part)| {
            let place = Place::of(&self.fleet, &key)?;
            let is_at_its_place = place.kind == kind && object.metadata.name.as_ref() == Some(&place.name);
            let value = object.value(kind, part).filter(|_| is_at_its_place)?;
            let is_valid = part != Part::Holder || self.is_alive(object, &place.name);
            is_valid.then(|| Entry { key, value: text(&value), version: version.clone() })
        };
        keys.into_iter().filter_map(entry).collect()
    }

    /// Whether the holder of a Lease has renewed it in its time, as far as this process has seen.
    fn is_alive(&self, object: &Object, name: &str) -> bool {
        let time = Duration::from_secs(object.duration().into());
        let mut holders = self.holders.lock().unwrap_or_else(PoisonError::into_inner);
        holders.note(name, object.renewal(), time)
    }

    /// What the key is, if not as expected.
    fn conflict(&self, key: &str, target: &Target, expected: &Expected) -> Option<Outcome> {
        let current = self.entry(key, target);
        let is_expected = match expected {
            Expected::Any => true,
            Expected::Absent => current.is_none(),
            Expected::Version(version) => current.as_ref().is_some_and(|current| current.version == *version),
        };
        (!is_expected).then_some(Outcome::Conflict { current })
    }

    /// Creates or replaces the object.
    async fn write(&self, target: &Target, change: impl Fn(&mut Object)) -> Result<Written, Failure> {
        if let Some(object) = &target.object {
            let mut object = object.clone();
            change(&mut object);
            return target.requests.replace(&object).await;
        }
        let mut object = target.place.object(&self.fleet, self.namespace().await?);
        change(&mut object);
        target.requests.create(&object).await
    }
}

/// Whether objects of a kind may hold keys that begin so.
fn may_hold(kind: Kind, prefix: &str) -> bool {
    let overlaps = |other: &str| prefix.starts_with(other) || other.starts_with(prefix);
    match kind {
        Kind::ConfigMap => [SHARED, CHUNKS, ANSWERS].into_iter().any(overlaps),
        Kind::Secret => overlaps(SHARED),
        Kind::Lease => overlaps(MEMBERS) || overlaps(ALIVE),
    }
}

fn done(object: &Object) -> Outcome {
    Outcome::Done { version: object.metadata.resource_version.clone().unwrap_or_default() }
}

fn too_many_writers(key: &str) -> Failure {
    Failure::unavailable(format_args!("{key} was written by others {MAX_ATTEMPTS} times meanwhile; try again"))
}

/// A MicroTime of Kubernetes.
const MICRO_TIME: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]Z");

const MAX_ATTEMPTS: usize = 5;
