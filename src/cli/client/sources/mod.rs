//! `portcullis sources`: lists and changes the trusted sources of a listener or a group.

pub(crate) mod change;
pub(crate) mod edit;
pub(crate) mod list;
pub(crate) mod plan;
pub(crate) mod remove;
pub(crate) mod rule;

use std::time::Duration;

use clap::{ArgGroup, Args, Subcommand};

use crate::cli::client::AdminClient;
use crate::cli::client::args::Running;
use crate::cli::client::http::{encoded, with_query};
use crate::cli::client::json_view::JsonView;
use crate::cli::client::members::parse_wait;
use crate::cli::client::sources::change::{Addition, append, replace};
use crate::cli::client::sources::edit::{Edit, Expiry, edit};
use crate::cli::client::sources::remove::{RuleSelector, remove};
use crate::cli::client::sources::rule::GivenRule;
use crate::cli::{Failure, parse_positive_duration_text};

#[derive(Debug, Subcommand)]
pub(crate) enum SourcesCommand {
    /// List the trusted sources of a listener or a group with their use
    List {
        #[command(flatten)]
        place: Place,
    },
    /// Add rules to a listener or a group, in its sources_file or in the store of the fleet
    #[command(long_about = APPEND)]
    Append(Box<AppendArgs>),
    /// Change description and expiry of a rule of a listener or a group; its sessions stay open
    Edit(Box<EditArgs>),
    /// Remove rules from a listener or a group; sessions that only they admit are closed
    Remove {
        #[command(flatten)]
        place: Place,
        /// UUIDs of rules, or rules as TYPE:VALUE, in any spelling
        #[arg(value_name = "UUID|TYPE:VALUE", required_unless_present = "rule_options")]
        rules: Vec<RuleSelector>,
        /// The same as the arguments; may be repeated or separated by commas
        #[arg(id = "rule_options", long = "rule", value_name = "TYPE:VALUE", value_delimiter = ',')]
        rule_options: Vec<RuleSelector>,
        #[command(flatten)]
        options: Options,
    },
    /// Replace all rules of a listener or a group in its sources_file or in the store of the fleet
    #[command(group(ArgGroup::new("replacement").args(["rules", "rule_options", "none"]).required(true).multiple(true)))]
    Replace {
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        rules: Rules,
        /// Remove all of them, so that only rules of the configuration admit clients
        #[arg(long, conflicts_with_all = ["rules", "rule_options"])]
        none: bool,
        #[command(flatten)]
        options: Options,
    },
}

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("addition").args(["rules", "rule_options", "my_address"]).required(true).multiple(true)))]
pub(crate) struct AppendArgs {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    rules: Rules,
    /// Trust the address from which the program sees this machine; requires --url
    #[arg(long, conflicts_with_all = ["rules", "rule_options"])]
    my_address: bool,
    /// Text for people, such as why the source is trusted
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// Time until the rules expire, such as 2h; their sessions then end. Default: they do not expire
    #[arg(long, value_name = "DURATION", value_parser = parse_positive_duration_text)]
    ttl: Option<String>,
    #[command(flatten)]
    options: Options,
}

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("expiry").args(["ttl", "expires_at", "no_expiry"])))]
#[command(group(ArgGroup::new("edit").args(["description", "ttl", "expires_at", "no_expiry"]).required(true).multiple(true)))]
pub(crate) struct EditArgs {
    #[command(flatten)]
    place: Place,
    /// UUID of the rule, or the rule as TYPE:VALUE, in any spelling
    #[arg(value_name = "UUID|TYPE:VALUE")]
    rule: RuleSelector,
    /// Text for people; empty to remove it
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// Time until the rule expires, such as 2h; its sessions then end
    #[arg(long, value_name = "DURATION", value_parser = parse_positive_duration_text)]
    ttl: Option<String>,
    /// When the rule expires, such as 2027-01-31T00:00:00Z
    #[arg(long, value_name = "TIME")]
    expires_at: Option<String>,
    /// The rule does not expire
    #[arg(long)]
    no_expiry: bool,
    #[command(flatten)]
    options: Options,
}

/// The listener or the group, and how to reach its program.
#[derive(Debug, Args)]
pub(crate) struct Place {
    #[command(flatten)]
    pub(crate) running: Running,
    /// Name of the listener, or group:NAME for a source group
    #[arg(value_name = "LISTENER")]
    pub(crate) listener: String,
    /// Print JSON instead of text
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Rules {
    /// Rules such as dns:app.internal, group:web, tag:backend or kubernetes:pods:shop; an address or network needs no type
    #[arg(value_name = "TYPE:VALUE")]
    rules: Vec<GivenRule>,
    /// The same as the arguments; may be repeated or separated by commas
    #[arg(id = "rule_options", long = "rule", value_name = "TYPE:VALUE", value_delimiter = ',')]
    rule_options: Vec<GivenRule>,
}

#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Plan {
    /// Show what would change and which sessions would end, without changing anything
    #[arg(long)]
    pub(crate) plan: bool,
}

/// How a change is made.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) plan: Plan,
    /// Wait up to this time, such as 5s, until all members of the fleet have the change in force; exit 1 if one has not
    #[arg(long, value_name = "DURATION", value_parser = parse_wait, conflicts_with = "plan")]
    pub(crate) wait: Option<Duration>,
}

impl Options {
    /// The path with the parameters of the query.
    pub(crate) fn query(self, path: &str) -> String {
        let wait = self.wait.map(|wait| format!("{}ms", wait.as_millis()));
        with_query(path, &[("plan", self.plan.plan.then_some("true")), ("wait", wait.as_deref())])
    }
}

/// Whether a rule can be changed by commands: it is in the `sources_file` or in the store of the fleet.
pub(crate) fn is_changeable(rule: JsonView<'_>) -> bool {
    matches!(rule.text("origin").as_deref(), Some("file" | "fleet"))
}

impl Rules {
    fn all(&self) -> Vec<GivenRule> {
        self.rules.iter().chain(&self.rule_options).cloned().collect()
    }
}

impl Place {
    pub(crate) fn client(&self) -> Result<AdminClient, Failure> {
        AdminClient::find(&self.running)
    }

    /// The path of the sources.
    pub(crate) fn target(&self) -> String {
        format!("/v1/listeners/{}/sources", encoded(&self.listener))
    }
}

pub(crate) fn run(command: &SourcesCommand) -> Result<(), Failure> {
    match command {
        SourcesCommand::List { place } => list::list(&place.client()?, place),
        SourcesCommand::Append(args) => {
            let AppendArgs { place, rules, my_address, description, ttl, options } = &**args;
            let client = place.client()?;
            let mut rules = rules.all();
            if *my_address {
                rules.push(own_address(&client)?);
            }
            let addition = Addition { rules: &rules, description: description.as_deref(), ttl: ttl.as_deref() };
            append(&client, place, &addition, *options)
        }
        SourcesCommand::Edit(args) => {
            let EditArgs { place, rule, description, ttl, expires_at, no_expiry, options } = &**args;
            let ttl = ttl.as_deref().map(Expiry::Ttl);
            let expiry = ttl.or(expires_at.as_deref().map(Expiry::At)).or(no_expiry.then_some(Expiry::Never));
            edit(&place.client()?, place, rule, &Edit { description: description.as_deref(), expiry }, *options)
        }
        SourcesCommand::Remove { place, rules, rule_options, options } => {
            let removals: Vec<_> = rules.iter().chain(rule_options).cloned().collect();
            remove(&place.client()?, place, &removals, *options)
        }
        // `none` has no further effect: clap has checked that it stands for an empty list.
        SourcesCommand::Replace { place, rules, none: _, options } => {
            replace(&place.client()?, place, &rules.all(), *options)
        }
    }
}

/// A rule for the address from which the program sees this client.
fn own_address(client: &AdminClient) -> Result<GivenRule, Failure> {
    let status = client.get("/v1/status")?;
    let address = status.get("your_address").and_then(serde_json::Value::as_str);
    let address = address.ok_or_else(|| Failure::Usage(NO_ADDRESS.to_owned()))?;
    address.parse().map_err(|error| client.failure(format_args!("your_address: {error}")))
}

const NO_ADDRESS: &str = "--my-address: the program does not know an address of this client, because the Unix socket has none; \
                          use --url, or write the address";

const APPEND: &str = "\
Add rules to a listener or a group, in its sources_file or in the store of the fleet. They are in force when the command ends. A rule that is there already stays as it is.

A CI runner admits itself for two hours with `portcullis sources append LISTENER --my-address --ttl 2h --url URL`. It needs no \
clean-up: the rule and its sessions end after that time.";
