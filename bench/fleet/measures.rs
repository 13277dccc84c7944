//! What is measured with real members.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::time::sleep;

use crate::Options;
use crate::fault::Result;
use crate::member::{Answer, Member, Site};
use crate::sessions;
use crate::store::{Sample, Store, Usage};
use crate::summary::Summary;

/// What was measured with changes of one rule.
#[derive(Debug)]
pub(crate) struct Changes {
    pub(crate) members: usize,
    pub(crate) writes: u32,
    /// What the store does while nobody changes anything.
    pub(crate) quiet: Usage,
    /// What it does during all changes, and the pauses between them.
    pub(crate) busy: Usage,
    /// From each request until one of the other members has the change in force.
    pub(crate) others: Vec<Duration>,
    pub(crate) sample: Sample,
}

/// Measures changes of one rule in a list of constant length, and what the store does for them.
pub(crate) async fn small_changes(options: &Options, replicas: usize) -> Result<Changes> {
    let site = Site::new(&options.binary).await?;
    let store = Store::start(site.directory()).await?;
    let mut members = site.members(replicas, &store).await?;
    at(&members, 0)?.put(&rules(0..LIST)).await?;
    all_have(&mut members, &rule(LIST - 1)).await?;
    let ((), quiet) = store
        .usage_during(async || {
            sleep(QUIET).await;
            Ok(())
        })
        .await?;
    let writes = u32::from(options.writes);
    let spaced = async || {
        let mut times = Times::default();
        for number in 0..writes {
            sleep(PAUSE).await;
            times.change(&mut members, number).await?;
        }
        Ok(times)
    };
    let (times, busy) = store.usage_during(spaced).await?;
    println!("{replicas} members, {writes} changes of one rule in a list of {LIST}, {PAUSE:?} apart");
    let others = times.report();
    let mut times = Times::default();
    for number in writes..writes * 2 {
        times.change(&mut members, number).await?;
    }
    println!("{replicas} members, {writes} such changes in a row");
    times.report();
    let sample = store.sample().await?;
    Ok(Changes { members: replicas, writes, quiet, busy, others, sample })
}

/// How long changes took.
#[derive(Debug, Default)]
struct Times {
    /// From the request to the answer.
    answer: Vec<Duration>,
    /// From the answer until all members have the change in force.
    after: Vec<Duration>,
    /// From the request until all members have it.
    all: Vec<Duration>,
    /// From the request until one of the members has it that were not asked.
    others: Vec<Duration>,
}

impl Times {
    /// Replaces the oldest rule of the list at the member whose turn it is.
    async fn change(&mut self, members: &mut [Member], number: u32) -> Result<()> {
        let writer = usize::try_from(number)? % members.len();
        let newest = LIST + number;
        let Answer { asked, answered, .. } = at(members, writer)?.put(&rules(number + 1..newest + 1)).await?;
        let mut last = Duration::ZERO;
        for (index, member) in members.iter_mut().enumerate() {
            let in_force = member.has(&rule(newest)).await?;
            last = last.max(in_force);
            if index != writer {
                self.others.push(in_force.saturating_sub(asked));
            }
        }
        self.answer.push(answered.saturating_sub(asked));
        self.after.push(last.saturating_sub(answered));
        self.all.push(last.saturating_sub(asked));
        Ok(())
    }

    /// Prints the percentiles. Returns the times of the members that were not asked.
    fn report(self) -> Vec<Duration> {
        println!("  answered after the request:        {}", Summary::from(self.answer));
        println!("  in force on all after the answer:  {}", Summary::from(self.after));
        println!("  in force on all after the request: {}", Summary::from(self.all));
        self.others
    }
}

/// Measures a long list, and a change that ends many sessions.
pub(crate) async fn large_changes(options: &Options) -> Result<()> {
    let site = Site::new(&options.binary).await?;
    let store = Store::start(site.directory()).await?;
    let mut members = site.members(options.replicas.into(), &store).await?;
    if options.rules > 0 {
        println!("{} members, {} rules at once", options.replicas, options.rules);
        let all = rules(0..options.rules);
        // The log has only the first thousand.
        change(&store, &mut members, "PUT", &all, &rule(0)).await?;
        println!("  one rule more");
        change(
            &store,
            &mut members,
            "POST",
            &json!({ "rules": [{ "type": "ip_addr", "value": "192.0.2.1" }] }),
            "ip_addr:192.0.2.1",
        )
        .await?;
    }
    if options.sessions > 0 {
        end_sessions(options, &site, &mut members).await?;
    }
    Ok(())
}

/// Prints how long a change takes, and what the store does for it.
async fn change(store: &Store, members: &mut [Member], method: &str, rules: &Value, rule: &str) -> Result<()> {
    let work = async || {
        let answer = at(members, 0)?.change(method, rules).await?;
        // It comes into force also without this answer.
        if !answer.is_done() && !answer.is_late() {
            return Err(answer.into_error());
        }
        let in_force = all_have(members, rule).await?;
        Ok((answer, in_force))
    };
    let ((answer, in_force), usage) = store.usage_during(work).await?;
    println!("  answered with {} {:.0?} after the request", answer.status(), answer.answered - answer.asked);
    println!("  in force on all {:.0?} after the request", in_force.saturating_sub(answer.asked));
    println!("  the store: {}", usage.work);
    Ok(())
}

/// Withdraws the rule of many sessions.
async fn end_sessions(options: &Options, site: &Site, members: &mut [Member]) -> Result<()> {
    at(members, 0)?.put(&json!({ "rules": [{ "type": "ip_addr", "value": "127.0.0.1" }] })).await?;
    all_have(members, "ip_addr:127.0.0.1").await?;
    let addresses: Vec<_> = members.iter().map(Member::address).collect();
    let opened = Instant::now();
    let sessions = sessions::open(site, &addresses, options.sessions).await?;
    println!("{} sessions on {} members, opened in {:.1?}", options.sessions, members.len(), opened.elapsed());
    let Answer { asked, answered, .. } = at(members, 0)?.put(&json!({ "rules": [] })).await?;
    let ends = sessions.ends().await?;
    let early = ends.iter().filter(|end| **end < asked).count();
    if early > 0 {
        return Err(format!("{early} sessions ended before the change").into());
    }
    let since = |start: Duration| Summary::from(ends.iter().map(|end| end.saturating_sub(start)).collect::<Vec<_>>());
    println!("  {} ended after the answer:  {}", ends.len(), since(answered));
    println!("  {} ended after the request: {}", ends.len(), since(asked));
    Ok(())
}

fn at(members: &[Member], number: usize) -> Result<&Member> {
    members.get(number).ok_or_else(|| "the fleet has no such member".into())
}

/// The body of a request with these rules.
fn rules(numbers: std::ops::Range<u32>) -> Value {
    let rules: Vec<_> = numbers.map(|number| json!({ "type": "ip_addr", "value": address(number) })).collect();
    json!({ "rules": rules })
}

/// A rule as the log has it.
fn rule(number: u32) -> String {
    format!("ip_addr:{}", address(number))
}

/// A different address for each number.
fn address(number: u32) -> std::net::Ipv4Addr {
    (u32::from(std::net::Ipv4Addr::new(10, 0, 0, 0)) + number).into()
}

/// Waits until all members have a rule in force. Returns when the last one had, since 1970.
async fn all_have(members: &mut [Member], rule: &str) -> Result<Duration> {
    let mut last = Duration::ZERO;
    for member in members {
        last = last.max(member.has(rule).await?);
    }
    Ok(last)
}

/// Rules of the list in which one changes.
const LIST: u32 = 100;

/// The wait before a change. After a change of its files, a member waits until they have been quiet for 100 ms.
const PAUSE: Duration = Duration::from_millis(400);

/// How long the idle store is watched.
const QUIET: Duration = Duration::from_secs(30);
