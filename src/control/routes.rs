//! All routes of the admin API. Dispatch, access control, the OpenAPI description and the tests of roles use this table.

use crate::audit::recent::EventFilter;
use crate::config::values::parse_duration;
use crate::control::AdminRequest;
use crate::control::parameters::{Parameters, invalid};
use crate::control::request::{DenialFilter, SessionFilter, explain, reload, sources, tokens};
use crate::control::response::AdminResponse;
use crate::control::route::{BodyLimit, Call, Operation, Parameter, Route, RouteAccess, Success, SuccessContent, Verb};
use crate::token::Role;

pub(crate) static ROUTES: &[Route] = &[
    Route { parse: |_| Ok(Operation::Paths), ..get("/", RouteAccess::Public, "Lists all paths", &["paths"]) },
    Route {
        parse: |_| Ok(Operation::OpenApi),
        ..get("/v1/openapi.json", VIEWER, "Describes this API", &["openapi", "info", "paths", "components"])
    },
    Route {
        parse: |_| request(AdminRequest::Status),
        ..get("/v1/status", VIEWER, "Shows the state of the program, its listeners and its last reload", STATUS)
    },
    Route {
        parse: |_| request(AdminRequest::Listeners),
        ..get("/v1/listeners", VIEWER, "Lists the listeners", &["listeners"])
    },
    Route {
        parse: |call| request(AdminRequest::Listener(call.segment(0))),
        ..get("/v1/listeners/{name}", VIEWER, "Shows a listener", &["name", "protocol", "addresses", "upstream"])
    },
    Route {
        parse: |call| request(AdminRequest::Sources { listener: call.segment(0) }),
        ..get("/v1/listeners/{name}/sources", VIEWER, "Lists the trusted sources of a listener, with an ETag", RULES)
    },
    Route {
        parse: sources::append,
        body: BodyLimit::Sources,
        query: PLAN,
        success: Success { status: 201, content: SuccessContent::Object(RULES) },
        ..change(Verb::Post, "/v1/listeners/{name}/sources", "Adds rules to the sources_file of a listener")
    },
    Route {
        parse: sources::replace,
        body: BodyLimit::Sources,
        query: PLAN,
        ..change(Verb::Put, "/v1/listeners/{name}/sources", "Replaces the rules in the sources_file of a listener")
    },
    Route {
        parse: sources::remove,
        query: PLAN,
        ..change(
            Verb::Delete,
            "/v1/listeners/{name}/sources/{uuid}",
            "Removes a rule from the sources_file of a listener",
        )
    },
    Route {
        parse: |call| Ok(Operation::Request(AdminRequest::Sessions(session_filter(&call.query)?))),
        query: &[
            Parameter { name: "listener", text: "only sessions of this listener" },
            Parameter { name: "source", text: "only sessions from this address or network" },
            Parameter { name: "client", text: "only sessions whose client certificate has this text in its subject" },
            Parameter { name: "limit", text: "the maximum number of sessions" },
            Parameter { name: "offset", text: "the number of sessions to skip" },
        ],
        ..get("/v1/sessions", VIEWER, "Lists the sessions, oldest first", &["sessions", "total"])
    },
    Route { parse: close_session, ..change(Verb::Delete, "/v1/sessions/{id}", "Closes a session") },
    Route {
        parse: |_| request(AdminRequest::Certificates),
        ..get("/v1/certificates", VIEWER, "Lists all certificates with their expiry and use", &["certificates"])
    },
    Route {
        parse: |_| request(AdminRequest::Rotation),
        ..get("/v1/rotation", VIEWER, "Lists certificates, CAs and sources with their use", &["generation", "items"])
    },
    Route {
        parse: |call| Ok(Operation::Request(AdminRequest::Denials(denial_filter(&call.query)?))),
        query: &[
            Parameter { name: "listener", text: "only denials by this listener" },
            Parameter { name: "since", text: "only denials of this last time, such as 10m" },
        ],
        ..get("/v1/denials", VIEWER, "Lists denied sources by listener, network and reason", &["denials"])
    },
    Route {
        parse: explain::from_query,
        query: &[
            Parameter { name: "listener", text: "name of the listener" },
            Parameter { name: "source", text: "address of the client, or unix" },
        ],
        ..get("/v1/explain", VIEWER, "Explains step by step whether a connection would be admitted", EXPLAIN)
    },
    Route {
        method: Verb::Post,
        parse: explain::from_body,
        ..get("/v1/explain", VIEWER, "Explains the same for a client certificate, sent as PEM in the body", EXPLAIN)
    },
    Route {
        parse: reload::parse,
        query: PLAN,
        success: Success { status: 200, content: SuccessContent::Object(&["result", "generation", "differences"]) },
        ..change(Verb::Post, "/v1/reload", "Reloads the configuration, completely or not at all")
    },
    Route {
        parse: |call| Ok(Operation::Request(events(&call.query)?)),
        query: &[
            Parameter { name: "listener", text: "only events of this listener" },
            Parameter { name: "event", text: "only events of this name" },
            Parameter { name: "recent", text: "the number of past events that come first, by default 0, at most 1000" },
        ],
        success: Success { status: 200, content: SuccessContent::Events },
        ..get("/v1/events", VIEWER, "Sends audit events as they happen", &[])
    },
    Route { parse: |_| request(AdminRequest::Tokens), ..get("/v1/tokens", OWNER, "Lists the tokens", &["tokens"]) },
    Route {
        access: OWNER,
        parse: tokens::new,
        success: Success { status: 201, content: SuccessContent::Object(&["token", "name", "role", "expires_at"]) },
        ..change(Verb::Post, "/v1/tokens", "Creates a token and shows it this once")
    },
    Route {
        access: OWNER,
        parse: |call| request(AdminRequest::RevokeToken(call.segment(0))),
        ..change(Verb::Delete, "/v1/tokens/{name}", "Removes a token")
    },
    Route {
        parse: |call| request(AdminRequest::Firewall { listener: call.segment(0) }),
        ..get(
            "/v2/databases/{id}/firewall",
            VIEWER,
            "Lists the rules of a sources_file as DigitalOcean's API does",
            &["rules"],
        )
    },
    Route {
        parse: sources::replace,
        body: BodyLimit::Sources,
        ..change(Verb::Put, "/v2/databases/{id}/firewall", "Replaces the rules as DigitalOcean's API does")
    },
    Route {
        parse: |call| request(AdminRequest::CaBundle { listener: call.segment(0) }),
        ..get("/v2/databases/{id}/ca", VIEWER, "Returns the certificates that clients should trust", &["ca"])
    },
];

/// Whether a path belongs to DigitalOcean's API, whose errors have fixed words.
pub(crate) fn is_digitalocean(path: &str) -> bool {
    path.starts_with("/v2/")
}

const fn get(path: &'static str, access: RouteAccess, summary: &'static str, fields: &'static [&'static str]) -> Route {
    Route {
        method: Verb::Get,
        path,
        access,
        body: BodyLimit::Small,
        query: &[],
        summary,
        success: Success { status: 200, content: SuccessContent::Object(fields) },
        parse: |_| Ok(Operation::Paths),
    }
}

/// A change with the answer 204.
const fn change(method: Verb, path: &'static str, summary: &'static str) -> Route {
    Route {
        method,
        path,
        access: RouteAccess::Role(Role::Operator),
        body: BodyLimit::Small,
        query: &[],
        summary,
        success: Success { status: 204, content: SuccessContent::Empty },
        parse: |_| Ok(Operation::Paths),
    }
}

fn request(request: AdminRequest) -> Result<Operation, AdminResponse> {
    Ok(Operation::Request(request))
}

fn close_session(call: &Call<'_>) -> Result<Operation, AdminResponse> {
    let text = call.segment(0);
    let id = text.parse().map_err(|_| invalid(format_args!("{text:?} is not the number of a session")))?;
    request(AdminRequest::CloseSession(id))
}

fn session_filter(query: &Parameters) -> Result<SessionFilter, AdminResponse> {
    let network = |text: &str| text.parse().map_err(|error| invalid(format_args!("source {text:?} is {error}")));
    Ok(SessionFilter {
        listener: query.get("listener").map(str::to_owned),
        source: query.get("source").map(network).transpose()?,
        client: query.get("client").map(str::to_owned),
        offset: query.number("offset")?.unwrap_or_default(),
        limit: query.number("limit")?,
    })
}

fn denial_filter(query: &Parameters) -> Result<DenialFilter, AdminResponse> {
    let duration =
        |text: &str| parse_duration(text).map_err(|error| invalid(format_args!("since is {text:?}; expected {error}")));
    Ok(DenialFilter {
        listener: query.get("listener").map(str::to_owned),
        since: query.get("since").map(duration).transpose()?,
    })
}

fn events(query: &Parameters) -> Result<AdminRequest, AdminResponse> {
    let filter =
        EventFilter { listener: query.get("listener").map(Box::from), event: query.get("event").map(Box::from) };
    let recent = query.number("recent")?.unwrap_or_default().min(MAX_RECENT);
    Ok(AdminRequest::Events { filter, recent })
}

const VIEWER: RouteAccess = RouteAccess::Role(Role::Viewer);
const OWNER: RouteAccess = RouteAccess::Role(Role::Owner);

const PLAN: &[Parameter] = &[Parameter { name: "plan", text: "true: show what would change, and change nothing" }];
const RULES: &[&str] = &["rules"];
const STATUS: &[&str] = &["version", "generation", "last_reload", "listeners"];
const EXPLAIN: &[&str] = &["steps", "verdict", "reason", "rule"];

/// Past events of one response.
const MAX_RECENT: usize = 1_000;
