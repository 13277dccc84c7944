//! Starts and stops the resolvers of a task.

use std::collections::BTreeSet;
use std::future::pending;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::agent::message::Task;
use crate::fault;
use crate::resolution::observation::Observation;
use crate::resolution::settings::{DigitalOceanSettings, KubernetesSettings};
use crate::source::cloud::{CloudSource, Resolver};

/// The sources that a resolver has to resolve.
pub(crate) type Sources = Arc<BTreeSet<CloudSource>>;

/// What a resolver reports.
pub(crate) type Observed = (CloudSource, Observation);

/// All resolvers.
#[derive(Debug, Default)]
pub(crate) struct Resolvers {
    digitalocean: Slot<DigitalOceanSettings>,
    kubernetes: Slot<KubernetesSettings>,
}

impl Resolvers {
    /// Does what a task asks for from now on.
    pub(crate) fn apply(&mut self, task: Task) {
        let sources = |resolver| {
            let of_it = task.sources.iter().filter(|source| source.resolver() == resolver).cloned();
            Arc::new(of_it.collect::<BTreeSet<_>>())
        };
        self.digitalocean.apply(
            task.digitalocean.as_ref(),
            sources(Resolver::DigitalOcean),
            |settings, sources, observed| {
                let run = move || digitalocean(settings.clone(), sources.clone(), observed.clone());
                fault::restarted(Resolver::DigitalOcean.name(), run)
            },
        );
        self.kubernetes.apply(
            task.kubernetes.as_ref(),
            sources(Resolver::Kubernetes),
            |settings, sources, observed| {
                let run = move || kubernetes(settings.clone(), sources.clone(), observed.clone());
                fault::restarted(Resolver::Kubernetes.name(), run)
            },
        );
    }

    /// The next observation of a source of the task.
    pub(crate) async fn next(&mut self) -> Observed {
        tokio::select! {
            observed = self.digitalocean.next() => observed,
            observed = self.kubernetes.next() => observed,
        }
    }
}

#[cfg(feature = "digitalocean")]
use crate::agent::digitalocean::run as digitalocean;
#[cfg(feature = "kubernetes")]
use crate::agent::kubernetes::run as kubernetes;

// The configuration rejects a section whose feature is missing, so no task has such sources.

#[cfg(not(feature = "digitalocean"))]
async fn digitalocean(_: DigitalOceanSettings, _: watch::Receiver<Sources>, observed: mpsc::Sender<Observed>) {
    observed.closed().await;
}

#[cfg(not(feature = "kubernetes"))]
async fn kubernetes(_: KubernetesSettings, _: watch::Receiver<Sources>, observed: mpsc::Sender<Observed>) {
    observed.closed().await;
}

/// The place of one resolver.
#[derive(Debug)]
struct Slot<S> {
    running: Option<Running<S>>,
}

/// A resolver that runs, with a channel of its own: what it has not reported yet ends with it.
#[derive(Debug)]
struct Running<S> {
    settings: S,
    sources: watch::Sender<Sources>,
    observed: mpsc::Receiver<Observed>,
    /// Ends the resolver when it is dropped.
    _task: JoinSet<()>,
}

impl<S> Default for Slot<S> {
    fn default() -> Self {
        Self { running: None }
    }
}

impl<S: Clone + PartialEq> Slot<S> {
    /// Runs the resolver with these settings for these sources, or ends it.
    fn apply<F: Future<Output = ()> + Send + 'static>(
        &mut self,
        settings: Option<&S>,
        sources: Sources,
        start: impl FnOnce(S, watch::Receiver<Sources>, mpsc::Sender<Observed>) -> F,
    ) {
        let Some(settings) = settings.filter(|_| !sources.is_empty()) else {
            self.running = None;
            return;
        };
        match &self.running {
            Some(running) if running.settings == *settings => {
                running.sources.send_if_modified(|current| {
                    let changes = *current != sources;
                    *current = sources;
                    changes
                });
            }
            _ => {
                let (sources, watched) = watch::channel(sources);
                let (sender, observed) = mpsc::channel(MAX_QUEUED);
                let mut task = JoinSet::new();
                task.spawn(start(settings.clone(), watched, sender));
                self.running = Some(Running { settings: settings.clone(), sources, observed, _task: task });
            }
        }
    }

    /// The next observation of one of its current sources.
    async fn next(&mut self) -> Observed {
        let Some(running) = &mut self.running else { return pending().await };
        loop {
            match running.observed.recv().await {
                Some((source, observation)) => {
                    let is_current = running.sources.borrow().contains(&source);
                    if is_current {
                        return (source, observation);
                    }
                }
                None => return pending().await,
            }
        }
    }
}

/// Observations that wait for the program. A resolver that has more waits.
const MAX_QUEUED: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    /// A resolver that reports each of its sources as failed with the settings as the error, whenever they change.
    async fn echo(settings: u32, mut sources: watch::Receiver<Sources>, observed: mpsc::Sender<Observed>) {
        loop {
            let current = Arc::clone(&sources.borrow_and_update());
            for source in current.iter() {
                let observation = Observation::Failed { error: settings.to_string() };
                if observed.send((source.clone(), observation)).await.is_err() {
                    return;
                }
            }
            if sources.changed().await.is_err() {
                return;
            }
        }
    }

    fn sources(numbers: &[u64]) -> Sources {
        Arc::new(numbers.iter().copied().map(CloudSource::Droplet).collect())
    }

    async fn next(slot: &mut Slot<u32>) -> (u64, String) {
        match slot.next().await {
            (CloudSource::Droplet(number), Observation::Failed { error }) => (number, error),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn changed_settings_restart_a_resolver_and_changed_sources_do_not() {
        let mut slot = Slot::default();
        slot.apply(Some(&1), sources(&[7]), echo);
        assert_eq!(next(&mut slot).await, (7, "1".to_owned()));
        slot.apply(Some(&1), sources(&[8, 9]), echo);
        assert_eq!(next(&mut slot).await, (8, "1".to_owned()));
        slot.apply(Some(&2), sources(&[9]), echo);
        assert_eq!(next(&mut slot).await, (9, "2".to_owned()), "no answer by the former settings is reported");
        slot.apply(None, sources(&[9]), echo);
        assert!(slot.running.is_none());
    }

    #[tokio::test]
    async fn observation_of_a_former_source_is_left_out() {
        let mut slot = Slot::default();
        slot.apply(Some(&1), sources(&[1, 2, 3]), echo);
        tokio::task::yield_now().await;
        slot.apply(Some(&1), sources(&[3]), echo);
        assert_eq!(next(&mut slot).await.0, 3);
        slot.apply(Some(&1), sources(&[]), echo);
        assert!(slot.running.is_none(), "nothing is left to resolve");
    }

    #[tokio::test(start_paused = true)]
    async fn resolver_that_panics_is_started_again_with_its_sources() {
        let mut slot = Slot::default();
        slot.apply(Some(&1), sources(&[7]), |settings, sources, observed| {
            let mut starts = 0;
            fault::restarted("test of resolvers", move || {
                starts += 1;
                assert!(starts > 1, "the first start fails");
                echo(settings, sources.clone(), observed.clone())
            })
        });
        assert_eq!(next(&mut slot).await, (7, "1".to_owned()));
    }
}
