//! The state of one cloud source after each observation. Pure.
//!
//! An observation comes from another process and, through it, from an API, and is hostile input. One that is no answer neither
//! removes nor adds an address. An answer without any address is in force when a second one confirms it, because lists are
//! wrong for a moment now and then, and all clients would lose their sessions.

use std::borrow::Cow;
use std::sync::Arc;

use time::OffsetDateTime;

use crate::printable;
use crate::resolution::observation::{Evidence, MAX_ADDRESSES, ObjectAddress, Observation};
use crate::resolution::status::{ResolutionState, ResolutionStatus};
use crate::source::addresses::{Addresses, OmittedAddresses};
use crate::timestamp;

/// What is known of one cloud source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct CloudState {
    /// The answer in force.
    answer: Option<Answer>,
    /// A later answer without addresses that is not confirmed.
    doubt: Option<Absence>,
    /// Why the last attempt gave no answer.
    failure: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Answer {
    content: Content,
    at: OffsetDateTime,
    /// Whether it comes from the state directory, and nothing was observed since the start.
    is_remembered: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Content {
    /// At least one address.
    Addresses(Addresses, Option<OmittedAddresses>),
    Absent(Absence),
}

/// Why a source has no address.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Absence {
    /// No object matches.
    Empty,
    /// There is no such object.
    Gone(String),
    /// The object has no address that can be trusted.
    Unresolvable(String),
}

/// A change of a source's state that is logged or audited.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum CloudChange {
    /// There is no newer answer, and the last good one stays in force.
    Stale { error: String },
    /// The source cannot be resolved and admits no client.
    Unresolved { detail: String },
    /// There is an answer again.
    Recovered,
    /// An answer with `removed` addresses less than the `known` ones, which is more than half of them.
    Shrunk { known: usize, removed: usize },
    /// Addresses of the answer are not trusted.
    Omitted(OmittedAddresses),
}

/// An observation whose texts and addresses are safe to keep.
enum Judged {
    Present(Addresses, Option<OmittedAddresses>),
    Absent(Absence, Evidence),
    NoAnswer(String),
}

impl From<Observation> for Judged {
    fn from(observation: Observation) -> Self {
        match observation {
            Observation::Addresses { addresses, evidence } => {
                let each = |ObjectAddress { ip, object }: ObjectAddress| (ip, shown_object(object));
                match Addresses::of_objects(addresses.into_iter().map(each), MAX_ADDRESSES) {
                    Ok((addresses, _)) if addresses.all().is_empty() => Self::Absent(Absence::Empty, evidence),
                    Ok((addresses, omitted)) => Self::Present(addresses, omitted),
                    // An API that lists objects with no usable address has not answered the question.
                    Err(error) => Self::NoAnswer(error.to_string()),
                }
            }
            Observation::Gone { detail, evidence } => Self::Absent(Absence::Gone(printable::fitted(detail)), evidence),
            Observation::Unresolvable { detail } => {
                Self::Absent(Absence::Unresolvable(printable::fitted(detail)), Evidence::List)
            }
            Observation::Failed { error } => Self::NoAnswer(printable::fitted(error)),
        }
    }
}

/// The name of an object without characters that could forge lines, at most one field long.
fn shown_object(object: Arc<str>) -> Arc<str> {
    let is_plain = object.len() <= MAX_OBJECT && object.bytes().all(|byte| matches!(byte, b' '..=b'~'));
    if is_plain { object } else { printable::cut(object, MAX_OBJECT).into() }
}

impl CloudState {
    /// The state after a start, with the last good addresses from the state directory.
    pub(crate) fn remembered(addresses: Addresses, at: OffsetDateTime) -> Self {
        let content = match addresses.all() {
            [] => Content::Absent(Absence::Empty),
            _ => Content::Addresses(addresses, None),
        };
        Self { answer: Some(Answer { content, at, is_remembered: true }), ..Self::default() }
    }

    /// The state after an observation.
    #[must_use]
    pub(crate) fn after(&self, observation: Observation, now: OffsetDateTime) -> Self {
        let answered = |content| {
            let answer = Some(Answer { content, at: now, is_remembered: false });
            Self { answer, doubt: None, failure: None }
        };
        match Judged::from(observation) {
            Judged::NoAnswer(error) => Self { failure: Some(error), ..self.clone() },
            Judged::Present(addresses, omitted) => answered(Content::Addresses(addresses, omitted)),
            Judged::Absent(absence, evidence) => {
                let is_confirmed = evidence == Evidence::Watch || self.doubt.is_some();
                match &self.answer {
                    Some(Answer { content: Content::Addresses(..), .. }) if !is_confirmed => {
                        Self { doubt: Some(absence), failure: None, ..self.clone() }
                    }
                    _ => answered(Content::Absent(absence)),
                }
            }
        }
    }

    /// The addresses in force; `None` if there was no answer.
    pub(crate) fn addresses(&self) -> Option<Addresses> {
        Some(match &self.answer.as_ref()?.content {
            Content::Addresses(addresses, _) => addresses.clone(),
            Content::Absent(_) => Addresses::default(),
        })
    }

    /// The last good answer, which is kept over a restart. An object that is gone has none.
    pub(crate) fn good(&self) -> Option<(Addresses, OffsetDateTime)> {
        let Answer { content, at, .. } = self.answer.as_ref()?;
        match content {
            Content::Addresses(addresses, _) => Some((addresses.clone(), *at)),
            Content::Absent(Absence::Empty) => Some((Addresses::default(), *at)),
            Content::Absent(Absence::Gone(_) | Absence::Unresolvable(_)) => None,
        }
    }

    pub(crate) fn status(&self) -> ResolutionStatus {
        let trouble = self.trouble();
        let (state, detail) = match &self.answer {
            None => (ResolutionState::Unresolved, trouble.unwrap_or(NOT_YET.into())),
            Some(Answer { content: Content::Absent(Absence::Gone(why) | Absence::Unresolvable(why)), .. }) => {
                (ResolutionState::Unresolved, trouble.unwrap_or(Cow::from(why)))
            }
            Some(Answer { content, at, is_remembered }) => match (trouble, is_remembered, content) {
                (Some(why), _, _) => (ResolutionState::Stale, why),
                (None, true, _) => (ResolutionState::Stale, remembered(*at).into()),
                (None, false, Content::Absent(_)) => (ResolutionState::Resolved, NO_OBJECT.into()),
                (None, false, Content::Addresses(_, Some(omitted))) => {
                    (ResolutionState::Resolved, omitted.to_string().into())
                }
                (None, false, Content::Addresses(_, None)) => (ResolutionState::Resolved, "".into()),
            },
        };
        ResolutionStatus {
            state,
            is_failing: state == ResolutionState::Stale || self.failure.is_some(),
            detail: Some(detail.into_owned()).filter(|detail| !detail.is_empty()),
            resolved_at: self.answer.as_ref().map(|answer| answer.at),
            next_lookup: None,
        }
    }

    /// Why the last observation is not in force.
    fn trouble(&self) -> Option<Cow<'_, str>> {
        let doubt = || Some(format!("{}; {UNCONFIRMED}", self.doubt.as_ref()?.why()).into());
        self.failure.as_deref().map(Cow::from).or_else(doubt)
    }

    /// The changes to log and to audit.
    pub(crate) fn changes_since(&self, before: &Self) -> Vec<CloudChange> {
        let mut changes = Vec::new();
        let status = self.status();
        let unresolved = |state: &Self| state.status().state == ResolutionState::Unresolved && state.answer.is_some();
        match (before.trouble().is_some(), self.trouble().is_some()) {
            (false, true) => changes.push(match (status.state, status.detail.unwrap_or_default()) {
                (ResolutionState::Stale, error) => CloudChange::Stale { error },
                (_, detail) => CloudChange::Unresolved { detail },
            }),
            (_, false) if unresolved(self) && !unresolved(before) => {
                changes.push(CloudChange::Unresolved { detail: status.detail.unwrap_or_default() });
            }
            (true, false) if status.state == ResolutionState::Resolved => changes.push(CloudChange::Recovered),
            _ => {}
        }
        let [known, now] = [before, self].map(|state| state.addresses().unwrap_or_default());
        let removed = known.without(&now).count();
        if known.all().len() >= MIN_SHRUNK && removed > known.all().len() / 2 {
            changes.push(CloudChange::Shrunk { known: known.all().len(), removed });
        }
        let omitted = |state: &Self| match state.answer.as_ref()?.content {
            Content::Addresses(_, omitted) => omitted,
            Content::Absent(_) => None,
        };
        if let Some(more) = omitted(self).filter(|more| omitted(before) != Some(*more)) {
            changes.push(CloudChange::Omitted(more));
        }
        changes
    }
}

impl Absence {
    fn why(&self) -> &str {
        match self {
            Self::Empty => NO_OBJECT,
            Self::Gone(why) | Self::Unresolvable(why) => why,
        }
    }
}

fn remembered(at: OffsetDateTime) -> String {
    format!("last answer at {}, none since the start", timestamp::seconds(at))
}

const NOT_YET: &str = "no answer yet";
const NO_OBJECT: &str = "no object matches";
const UNCONFIRMED: &str = "seen once, removes the addresses when seen again";

/// Maximum length of the name of an object, in bytes. A set has up to 65,536.
const MAX_OBJECT: usize = 128;

/// A set of this size that loses more than half of its addresses at once is worth a warning.
const MIN_SHRUNK: usize = 4;

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::*;

    const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

    fn list(last: &[u8], evidence: Evidence) -> Observation {
        let each = |last: &u8| ObjectAddress {
            ip: IpAddr::from([10, 0, 0, *last]),
            object: format!("droplet web-{last}").into(),
        };
        Observation::Addresses { addresses: last.iter().map(each).collect(), evidence }
    }

    fn seen(last: &[u8]) -> Observation {
        list(last, Evidence::List)
    }

    fn gone() -> Observation {
        Observation::Gone { detail: "there is no droplet 7".to_owned(), evidence: Evidence::List }
    }

    fn failed() -> Observation {
        Observation::Failed { error: "the API answered 429".to_owned() }
    }

    fn unresolvable() -> Observation {
        Observation::Unresolvable { detail: "the app has no dedicated egress".to_owned() }
    }

    fn after(observations: impl IntoIterator<Item = Observation>) -> CloudState {
        observations.into_iter().fold(CloudState::default(), |state, next| state.after(next, NOW))
    }

    fn shown(state: &CloudState) -> String {
        let ResolutionStatus { state: word, detail, .. } = state.status();
        let addresses = state.addresses().map_or("-".to_owned(), |known| known.to_string());
        format!("{} [{addresses}] {}", word.code(), detail.unwrap_or_default())
    }

    #[test]
    fn source_without_an_answer_is_unresolved() {
        assert_eq!(shown(&CloudState::default()), "unresolved [-] no answer yet");
        assert_eq!(shown(&after([failed()])), "unresolved [-] the API answered 429");
        assert_eq!(shown(&after([gone()])), "unresolved [] there is no droplet 7");
        assert_eq!(shown(&after([unresolvable()])), "unresolved [] the app has no dedicated egress");
        assert_eq!(shown(&after([seen(&[])])), "resolved [] no object matches");
        assert_eq!(shown(&after([gone(), failed()])), "unresolved [] the API answered 429");
        assert_eq!(shown(&after([seen(&[]), failed()])), "stale [] the API answered 429");
    }

    #[test]
    fn absence_in_a_list_counts_when_it_is_seen_twice() {
        let doubtful = "stale [10.0.0.1] there is no droplet 7; seen once, removes the addresses when seen again";
        assert_eq!(shown(&after([seen(&[1]), gone()])), doubtful);
        assert_eq!(shown(&after([seen(&[1]), gone(), failed()])), "stale [10.0.0.1] the API answered 429");
        assert_eq!(shown(&after([seen(&[1]), gone(), failed(), gone()])), "unresolved [] there is no droplet 7");
        assert_eq!(
            shown(&after([seen(&[1]), seen(&[]), failed(), failed(), seen(&[])])),
            "resolved [] no object matches"
        );
        assert_eq!(shown(&after([seen(&[1]), gone(), seen(&[2]), gone()])), doubtful.replace("0.1]", "0.2]"));
        let both = after([seen(&[1]), gone(), unresolvable()]);
        assert_eq!(shown(&both), "unresolved [] the app has no dedicated egress");
        assert_eq!(shown(&both.after(seen(&[3]), NOW)), "resolved [10.0.0.3] ");
    }

    #[test]
    fn absence_in_a_watch_counts_at_once() {
        assert_eq!(shown(&after([seen(&[1, 2]), list(&[], Evidence::Watch)])), "resolved [] no object matches");
        let gone = Observation::Gone { detail: "deleted".to_owned(), evidence: Evidence::Watch };
        assert_eq!(shown(&after([seen(&[1, 2]), gone])), "unresolved [] deleted");
    }

    #[test]
    fn remembered_answer_is_stale_until_it_is_confirmed_and_needs_two_absences_too() {
        let (addresses, _) =
            Addresses::of_objects([(IpAddr::from([10, 0, 0, 1]), "droplet a".into())], MAX_ADDRESSES).unwrap();
        let state = CloudState::remembered(addresses, NOW);
        assert_eq!(shown(&state), "stale [10.0.0.1] last answer at 1970-01-01T00:00:00Z, none since the start");
        assert_eq!(shown(&state.after(seen(&[1]), NOW)), "resolved [10.0.0.1] ");
        assert!(shown(&state.after(gone(), NOW)).starts_with("stale [10.0.0.1] there is no droplet 7; seen once"));
        let failing = state.after(failed(), NOW);
        let error = "the API answered 429".to_owned();
        assert_eq!(failing.changes_since(&state), [CloudChange::Stale { error }]);
        assert_eq!(CloudState::remembered(Addresses::default(), NOW).good(), Some((Addresses::default(), NOW)));
    }

    #[test]
    fn each_change_of_state_is_reported_once() {
        let steps =
            [seen(&[1]), failed(), failed(), gone(), failed(), seen(&[1]), gone(), gone(), failed(), seen(&[1])];
        let mut state = CloudState::default();
        let mut reported = Vec::new();
        for step in steps {
            let next = state.after(step, NOW);
            reported.push(next.changes_since(&state));
            state = next;
        }
        let stale = |error: &str| vec![CloudChange::Stale { error: error.to_owned() }];
        let unresolved = |detail: &str| vec![CloudChange::Unresolved { detail: detail.to_owned() }];
        let (none, recovered) = (Vec::new(), vec![CloudChange::Recovered]);
        let doubt = "there is no droplet 7; seen once, removes the addresses when seen again";
        assert_eq!(
            reported,
            [
                none.clone(),
                stale("the API answered 429"),
                none.clone(),
                none.clone(),
                none,
                recovered.clone(),
                stale(doubt),
                unresolved("there is no droplet 7"),
                unresolved("the API answered 429"),
                recovered,
            ]
        );
    }

    #[test]
    fn large_loss_is_reported() {
        let changes = |before: &[u8], next: &[u8]| {
            let before = after([seen(before)]);
            before.after(list(next, Evidence::Watch), NOW).changes_since(&before)
        };
        assert_eq!(changes(&[1, 2, 3, 4], &[4]), [CloudChange::Shrunk { known: 4, removed: 3 }]);
        assert_eq!(changes(&[1, 2, 3, 4], &[5, 6, 7, 4, 8]), [CloudChange::Shrunk { known: 4, removed: 3 }]);
        assert_eq!(changes(&[1, 2, 3, 4], &[]), [CloudChange::Shrunk { known: 4, removed: 4 }]);
        assert_eq!(changes(&[1, 2, 3, 4], &[3, 4]), []);
        assert_eq!(changes(&[1, 2, 3], &[]), []);
    }

    #[test]
    fn hostile_observation_is_bounded() {
        let unusable = ["0.0.0.0", "::", "::ffff:0.0.0.0"];
        let object = |ip: &str, object: &str| ObjectAddress { ip: ip.parse().unwrap(), object: object.into() };
        let only_unusable =
            Observation::Addresses { addresses: unusable.map(|ip| object(ip, "x")).into(), evidence: Evidence::Watch };
        assert!(shown(&after([seen(&[1]), only_unusable])).starts_with("stale [10.0.0.1] the answer is 0.0.0.0"));
        let name = format!("web\n{{\"event\": \u{202e}{}", "x".repeat(5_000));
        let addresses = vec![object("::ffff:10.0.0.1", &name), object("0.0.0.0", "x"), object("10.0.0.1", "zz")];
        let state = after([Observation::Addresses { addresses, evidence: Evidence::List }]);
        assert_eq!(shown(&state), "resolved [10.0.0.1] ");
        let known = state.addresses().unwrap();
        let kept = known.object_of(IpAddr::from([10, 0, 0, 1])).unwrap();
        assert!(kept.len() <= MAX_OBJECT + 16 && !kept.contains(['\n', '\u{202e}']), "{kept}");
        let many = (0..70_000_u32)
            .map(|number| ObjectAddress { ip: IpAddr::V4((0x0a00_0000 + number).into()), object: "pod".into() });
        let state = after([Observation::Addresses { addresses: many.collect(), evidence: Evidence::List }]);
        assert_eq!(state.addresses().unwrap().all().len(), MAX_ADDRESSES);
        assert!(shown(&state).ends_with("only the lowest 65536 are trusted; trust the network instead"));
        let text = "e\u{1b}[2J".repeat(1_000);
        for hostile in [
            Observation::Failed { error: text.clone() },
            Observation::Gone { detail: text.clone(), evidence: Evidence::Watch },
            Observation::Unresolvable { detail: text },
        ] {
            let detail = after([hostile]).status().detail.unwrap();
            assert!(detail.len() <= printable::MAX_FIELD && !detail.contains('\u{1b}'), "{detail}");
        }
    }

    fn any_observation() -> impl Strategy<Value = Observation> {
        let evidence = prop_oneof![3 => Just(Evidence::List), 1 => Just(Evidence::Watch)];
        prop_oneof![
            (proptest::collection::vec(0_u8..6, 0..6), evidence).prop_map(|(last, evidence)| list(&last, evidence)),
            Just(gone()),
            Just(unresolvable()),
            Just(failed()),
        ]
    }

    /// Whether an observation has no address, and whether it counts at once.
    fn absence(observation: &Observation) -> Option<bool> {
        match observation {
            Observation::Addresses { addresses, evidence } => {
                addresses.is_empty().then_some(*evidence == Evidence::Watch)
            }
            Observation::Gone { evidence, .. } => Some(*evidence == Evidence::Watch),
            Observation::Unresolvable { .. } => Some(false),
            Observation::Failed { .. } => None,
        }
    }

    proptest! {
        #[test]
        fn failure_changes_no_address(observations in proptest::collection::vec(any_observation(), 0..20)) {
            let before = after(observations);
            let failing = before.after(failed(), NOW);
            prop_assert_eq!(failing.addresses(), before.addresses());
            prop_assert_eq!(failing.good(), before.good());
            prop_assert!(failing.status().is_failing);
            let has_addresses = failing.addresses().is_some_and(|known| !known.all().is_empty());
            prop_assert_eq!(has_addresses, has_addresses && failing.status().state == ResolutionState::Stale);
        }

        #[test]
        fn failures_in_between_change_no_outcome(observations in proptest::collection::vec(any_observation(), 0..20)) {
            let is_answer = |observation: &Observation| !matches!(observation, Observation::Failed { .. });
            let answers: Vec<_> = observations.iter().filter(|each| is_answer(each)).cloned().collect();
            prop_assert_eq!(after(observations).addresses(), after(answers).addresses());
        }

        #[test]
        fn addresses_are_those_of_the_last_answer_that_counts(
            observations in proptest::collection::vec(any_observation(), 0..20),
        ) {
            let (mut expected, mut was_absent) = (None, false);
            for observation in &observations {
                match (observation, absence(observation)) {
                    (Observation::Failed { .. }, _) => continue,
                    (_, Some(at_once)) => {
                        let has_addresses = expected.as_ref().is_some_and(|known: &Addresses| !known.all().is_empty());
                        if at_once || was_absent || !has_addresses {
                            expected = Some(Addresses::default());
                        }
                        was_absent = true;
                    }
                    (Observation::Addresses { addresses, .. }, None) => {
                        let all = addresses.iter().map(|each| (each.ip, Arc::clone(&each.object)));
                        expected = Some(Addresses::of_objects(all, MAX_ADDRESSES).unwrap().0);
                        was_absent = false;
                    }
                    _ => {}
                }
            }
            prop_assert_eq!(after(observations).addresses(), expected);
        }

        #[test]
        fn stale_is_reported_once_for_each_time_that_a_source_becomes_stale(
            observations in proptest::collection::vec(any_observation(), 0..30),
        ) {
            let mut state = CloudState::default();
            for observation in observations {
                let next = state.after(observation, NOW);
                let becomes_stale =
                    state.status().state != ResolutionState::Stale && next.status().state == ResolutionState::Stale;
                let reported = next.changes_since(&state);
                let is_reported = reported.iter().any(|change| matches!(change, CloudChange::Stale { .. }));
                prop_assert_eq!(is_reported, becomes_stale, "{:?}", reported);
                state = next;
            }
        }
    }
}
