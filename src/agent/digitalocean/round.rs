//! One poll: the requests that answer a number of sources together.

use std::collections::{BTreeMap, BTreeSet};

use hyper::StatusCode;
use serde::de::{DeserializeOwned, IgnoredAny};
use time::OffsetDateTime;
use tokio::time::Instant;

use crate::agent::client::api::ApiClient;
use crate::agent::client::token::Token;
use crate::agent::digitalocean::answer::{Retry, Trouble, judge};
use crate::agent::digitalocean::budget::Budget;
use crate::agent::digitalocean::pages::{Following, Listing};
use crate::agent::digitalocean::resolve::{of_app, of_cluster, of_droplets, of_tag};
use crate::agent::digitalocean::shapes::{
    App, AppAnswer, Cluster, ClusterAnswer, Droplet, DropletAnswer, Item, NatGateway, Page,
};
use crate::resolution::observation::{Evidence, Observation};
use crate::resolution::settings::{AddressChoice, Secret};
use crate::source::cloud::{CloudSource, ObjectId};

/// The API with a token.
#[derive(Debug)]
pub(super) struct Api {
    pub(super) client: ApiClient,
    pub(super) secret: Secret,
    pub(super) choice: AddressChoice,
    pub(super) budget: Budget,
    /// The token that was last used.
    pub(super) token: Option<Token>,
}

/// The results of a poll.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) observations: Vec<(CloudSource, Observation)>,
    /// Set if the service as a whole failed; then the last requests were not sent.
    pub(super) failure: Option<Retry>,
    /// The path of the first request that failed.
    pub(super) failed_request: Option<String>,
}

type Droplets = BTreeMap<u64, Droplet>;

impl Api {
    /// Resolves these sources. Each gets an observation.
    pub(super) async fn resolve(&mut self, sources: &BTreeSet<CloudSource>) -> Outcome {
        let mut round = self.round();
        let observations = round.resolve(sources).await;
        let failure = round.failure.map(|trouble| match trouble {
            Trouble::Service { retry, .. } => retry,
            Trouble::Gone | Trouble::Request(_) => Retry::default(),
        });
        Outcome { observations, failure, failed_request: round.failed_request }
    }

    /// Repeats a request that failed. That an object does not exist is an answer.
    ///
    /// # Errors
    /// If it fails again.
    pub(super) async fn probe(&mut self, path: &str) -> Result<(), Trouble> {
        match self.round().get::<IgnoredAny>(path).await {
            Ok(_) | Err(Trouble::Gone) => Ok(()),
            Err(trouble) => Err(trouble),
        }
    }

    /// Reads the token for the next requests.
    fn round(&mut self) -> Round<'_> {
        let (failure, token) = match Token::read(&self.secret) {
            Ok(token) => (None, Some(token)),
            Err(error) => (Some(Trouble::service(error)), None),
        };
        self.token = token;
        Round { api: self, failure, failed_request: None }
    }

    /// Whether the token was replaced since it was last used.
    pub(super) fn has_newer_token(&self) -> bool {
        self.newer_token().is_some()
    }

    fn newer_token(&self) -> Option<Token> {
        Token::read(&self.secret).ok().filter(|newer| Some(newer) != self.token.as_ref())
    }
}

struct Round<'a> {
    api: &'a mut Api,
    /// Why the remaining requests need not be sent.
    failure: Option<Trouble>,
    failed_request: Option<String>,
}

impl Round<'_> {
    async fn resolve(&mut self, sources: &BTreeSet<CloudSource>) -> Vec<(CloudSource, Observation)> {
        // Before the droplets: a node that was added since then is in the list of droplets.
        let mut clusters = BTreeMap::new();
        let mut apps = BTreeMap::new();
        for source in sources {
            match source {
                CloudSource::Cluster(id) => drop(clusters.insert(id, self.cluster(id).await)),
                CloudSource::App(id) => drop(apps.insert(id, self.app(id).await)),
                CloudSource::Droplet(_) | CloudSource::Tag(_) | CloudSource::Kubernetes(_) => {}
            }
        }
        let nodes =
            clusters.values().flatten().flat_map(Cluster::nodes).filter_map(|node| node.droplet_id.parse().ok());
        let droplets = sources.iter().filter_map(|source| match source {
            CloudSource::Droplet(id) => Some(*id),
            _ => None,
        });
        let wanted: BTreeSet<u64> = nodes.chain(droplets).collect();
        let needs_list = !wanted.is_empty() || sources.iter().any(|source| matches!(source, CloudSource::Tag(_)));
        let list = if needs_list { self.droplets().await } else { Ok(Droplets::new()) };
        let mut others = BTreeMap::new();
        if let Ok(list) = &list {
            for id in wanted.into_iter().filter(|id| !list.contains_key(id)) {
                others.insert(id, self.droplet(id).await);
            }
        }
        let needs_gateways = clusters.values().flatten().any(Cluster::has_isolated_workers);
        let gateways = if needs_gateways { self.list("/v2/vpc_nat_gateways", "").await } else { Ok(Vec::new()) };

        let inventory = Inventory { list, others, gateways, choice: self.api.choice };
        let observe = |source: &CloudSource| match source {
            CloudSource::Droplet(id) => inventory.droplet(*id),
            CloudSource::Tag(tag) => match &inventory.list {
                Ok(list) => of_tag(list, tag, inventory.choice),
                Err(trouble) => failed(trouble, DROPLETS),
            },
            CloudSource::Cluster(id) => match clusters.get(id) {
                Some(Ok(cluster)) => inventory.cluster(cluster),
                Some(Err(trouble)) => gone_or_failed(trouble, "cluster", CLUSTERS),
                None => not_polled(),
            },
            CloudSource::App(id) => match apps.get(id) {
                Some(Ok(app)) => of_app(app, inventory.choice),
                Some(Err(trouble)) => gone_or_failed(trouble, "app", APPS),
                None => not_polled(),
            },
            CloudSource::Kubernetes(_) => not_polled(),
        };
        sources.iter().map(|source| (source.clone(), observe(source))).collect()
    }

    async fn cluster(&mut self, id: &ObjectId) -> Result<Cluster, Trouble> {
        let answer = self.get::<ClusterAnswer>(&format!("{CLUSTERS}/{}", id.as_str())).await;
        answer.map(|answer| answer.kubernetes_cluster)
    }

    async fn app(&mut self, id: &ObjectId) -> Result<App, Trouble> {
        self.get::<AppAnswer>(&format!("{APPS}/{}", id.as_str())).await.map(|answer| answer.app)
    }

    async fn droplet(&mut self, id: u64) -> Result<Droplet, Trouble> {
        let path = format!("{DROPLETS}/{id}");
        let droplet = self.get::<DropletAnswer>(&path).await?.droplet;
        if droplet.id == id { Ok(droplet) } else { Err(Trouble::request(&path, "the answer is about another droplet")) }
    }

    /// All droplets of the account. Those with GPUs are in a list of their own.
    async fn droplets(&mut self) -> Result<Droplets, Trouble> {
        let mut droplets = Droplets::new();
        for kind in ["", "&type=gpus"] {
            let list = self.list::<Droplet>(DROPLETS, kind).await?;
            droplets.extend(list.into_iter().map(|droplet| (droplet.id, droplet)));
        }
        Ok(droplets)
    }

    /// All pages of a list. The pages are counted here, so no link of an answer is followed.
    async fn list<T: Item + DeserializeOwned>(&mut self, path: &str, query: &str) -> Result<Vec<T>, Trouble> {
        let mut listing = Listing::new();
        for number in 1_u32.. {
            let request = format!("{path}?per_page={PER_PAGE}&page={number}{query}");
            let page = self.get::<Page<T>>(&request).await.map_err(|trouble| match trouble {
                // A list always exists.
                Trouble::Gone => Trouble::request(path, "404; correct endpoint"),
                other => other,
            });
            let following = page.and_then(|page| {
                let following = listing.add(page, self.api.client.endpoint());
                following.map_err(|error| Trouble::request(path, format_args!("the list is not complete: {error}")))
            });
            match following {
                Ok(Following::NextPage) => {}
                Ok(Following::Complete) => break,
                Err(trouble) => {
                    self.failed_request.get_or_insert(request);
                    return Err(trouble);
                }
            }
        }
        Ok(listing.into_items().collect())
    }

    /// Requests a path. After a failure of the whole service, no further request is sent.
    async fn get<T: DeserializeOwned>(&mut self, path: &str) -> Result<T, Trouble> {
        let result = match &self.failure {
            Some(failure) => Err(failure.clone()),
            None => self.request(path).await,
        };
        if let Err(trouble) = &result
            && *trouble != Trouble::Gone
        {
            self.failed_request.get_or_insert_with(|| path.to_owned());
            if matches!(trouble, Trouble::Service { .. }) {
                self.failure = Some(trouble.clone());
            }
        }
        result
    }

    async fn request<T: DeserializeOwned>(&mut self, path: &str) -> Result<T, Trouble> {
        let mut is_repeated = false;
        loop {
            let Some(token) = &self.api.token else { return Err(Trouble::service("there is no token")) };
            self.api.budget.spend(Instant::now());
            let answer = self.api.client.get(path, token).await;
            let answer =
                answer.map_err(|error| Trouble::service(format_args!("{}: {error}", self.api.client.endpoint())))?;
            self.api.budget.note(&answer.headers);
            let judged = judge(path, &answer, OffsetDateTime::now_utc());
            // The token may have been replaced since it was read.
            if answer.status == StatusCode::UNAUTHORIZED
                && !is_repeated
                && let Some(newer) = self.api.newer_token()
            {
                self.api.token = Some(newer);
                is_repeated = true;
                continue;
            }
            judged?;
            return serde_json::from_slice(&answer.body)
                .map_err(|error| Trouble::request(path, format_args!("the answer is invalid: {error}")));
        }
    }
}

/// What the requests of a poll found.
struct Inventory {
    list: Result<Droplets, Trouble>,
    /// Droplets that are not in the list, asked for one by one.
    others: BTreeMap<u64, Result<Droplet, Trouble>>,
    gateways: Result<Vec<NatGateway>, Trouble>,
    choice: AddressChoice,
}

impl Inventory {
    fn droplet(&self, id: u64) -> Observation {
        match (&self.list, self.others.get(&id)) {
            (Err(trouble), _) => failed(trouble, DROPLETS),
            (Ok(_), Some(Err(trouble))) => gone_or_failed(trouble, "droplet", DROPLETS),
            (Ok(_), Some(Ok(droplet))) => of_droplets([droplet], self.choice),
            (Ok(list), None) => list.get(&id).map_or_else(not_polled, |droplet| of_droplets([droplet], self.choice)),
        }
    }

    fn cluster(&self, cluster: &Cluster) -> Observation {
        let list = match &self.list {
            Ok(list) => list,
            Err(trouble) => return failed(trouble, DROPLETS),
        };
        let nodes = cluster.nodes().filter_map(|node| node.droplet_id.parse::<u64>().ok());
        let trouble =
            nodes.filter_map(|id| self.others.get(&id)?.as_ref().err()).find(|trouble| **trouble != Trouble::Gone);
        if let Some(trouble) = trouble {
            return failed(trouble, DROPLETS);
        }
        let gateways = match &self.gateways {
            Ok(gateways) => gateways,
            Err(trouble) if cluster.has_isolated_workers() => return failed(trouble, "/v2/vpc_nat_gateways"),
            Err(_) => &Vec::new(),
        };
        let droplet = |id| list.get(&id).or_else(|| self.others.get(&id)?.as_ref().ok()).cloned();
        of_cluster(cluster, droplet, gateways, self.choice)
    }
}

fn failed(trouble: &Trouble, path: &str) -> Observation {
    Observation::Failed { error: trouble.error(path) }
}

fn gone_or_failed(trouble: &Trouble, kind: &str, path: &str) -> Observation {
    match trouble {
        Trouble::Gone => {
            Observation::Gone { detail: format!("the {kind} does not exist (404)"), evidence: Evidence::List }
        }
        Trouble::Request(_) | Trouble::Service { .. } => failed(trouble, path),
    }
}

/// Unreachable: the requests follow from the sources.
fn not_polled() -> Observation {
    Observation::Failed { error: "it was not asked for".to_owned() }
}

const DROPLETS: &str = "/v2/droplets";
const CLUSTERS: &str = "/v2/kubernetes/clusters";
const APPS: &str = "/v2/apps";

/// The maximum of the API.
const PER_PAGE: u32 = 200;
