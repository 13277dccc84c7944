//! All routes of the admin API. Dispatch, access control, the OpenAPI description and the tests of roles use this table.

use crate::audit::recent::EventFilter;
use crate::config::values::parse_duration;
use crate::control::AdminRequest;
use crate::control::parameters::{Parameters, invalid};
use crate::control::request::{
    CloseSessions, DenialFilter, SessionFilter, client_certificates, explain, panel, passwords, reload, sources, tokens,
};
use crate::control::response::AdminResponse;
use crate::control::route::{
    BodyLimit, Call, Operation, PanelSessionOperation, Parameter, Parse, Route, RouteAccess, Success, SuccessContent,
    Verb,
};
use crate::token::Role;

pub(crate) static ROUTES: &[Route] = &[
    get(|_| Ok(Operation::Paths), "/", RouteAccess::Public, "Lists all paths", &["paths"]),
    get(
        |_| Ok(Operation::OpenApi),
        "/v1/openapi.json",
        VIEWER,
        "Describes this API",
        &["openapi", "info", "paths", "components"],
    ),
    get(
        |_| request(AdminRequest::Status),
        "/v1/status",
        VIEWER,
        "Shows the state of the program, its listeners and its last reload",
        STATUS,
    ),
    get(|_| request(AdminRequest::Listeners), "/v1/listeners", VIEWER, "Lists the listeners", &["listeners"]),
    get(
        |_| request(AdminRequest::History),
        "/v1/history",
        VIEWER,
        "Shows the sessions and denied connections of each minute of the last hour",
        &["interval_seconds", "until", "listeners"],
    ),
    get(
        |call| request(AdminRequest::Listener(call.segment(0))),
        "/v1/listeners/{name}",
        VIEWER,
        "Shows a listener",
        &["name", "protocol", "addresses", "upstream"],
    ),
    get(
        |_| request(AdminRequest::SourceGroups),
        "/v1/source-groups",
        VIEWER,
        "Lists the source groups with the listeners that use them",
        &["source_groups"],
    ),
    get(
        |call| request(AdminRequest::Sources { listener: call.segment(0) }),
        "/v1/listeners/{name}/sources",
        VIEWER,
        "Lists the trusted sources of a listener or a group, with an ETag",
        RULES,
    ),
    Route {
        body: BodyLimit::Sources,
        query: PLAN_WAIT,
        success: Success { status: 201, content: SuccessContent::Object(RULES) },
        ..change(
            sources::append,
            Verb::Post,
            "/v1/listeners/{name}/sources",
            "Adds rules to a listener or a group, in its sources_file or in the store of the fleet",
        )
    },
    Route {
        body: BodyLimit::Sources,
        query: PLAN_WAIT,
        ..change(
            sources::replace,
            Verb::Put,
            "/v1/listeners/{name}/sources",
            "Replaces the rules of a listener or a group in its sources_file or in the store of the fleet",
        )
    },
    Route {
        query: PLAN_WAIT,
        ..change(
            sources::remove,
            Verb::Delete,
            "/v1/listeners/{name}/sources/{uuid}",
            "Removes a rule of a listener or a group from its sources_file or from the store of the fleet",
        )
    },
    get(
        |call| request(AdminRequest::ClientCertificates { listener: call.segment(0) }),
        "/v1/listeners/{name}/client-certificates",
        VIEWER,
        "Lists the pinned client certificates of a listener, with an ETag",
        &["client_auth", "writable", "reason", "location", "issuing_ca", "ca_bundle", "certificates"],
    ),
    Route {
        query: PLAN,
        success: Success { status: 201, content: SuccessContent::Object(CERTIFICATE) },
        ..change(
            client_certificates::pin,
            Verb::Post,
            "/v1/listeners/{name}/client-certificates",
            "Pins a client certificate, so that the listener admits it without a CA",
        )
    },
    Route {
        query: PLAN,
        ..change(
            client_certificates::unpin,
            Verb::Delete,
            "/v1/listeners/{name}/client-certificates/{sha256}",
            "Removes a pinned client certificate",
        )
    },
    Route {
        success: Success { status: 200, content: SuccessContent::File("application/zip") },
        ..change(
            client_certificates::issue,
            Verb::Post,
            "/v1/listeners/{name}/client-certificates/issue",
            "Issues a client certificate with the issuing_ca of a listener, and sends it with its key this once",
        )
    },
    get(
        |call| request(AdminRequest::Clients { listener: call.segment(0) }),
        "/v1/listeners/{name}/clients",
        VIEWER,
        "Lists the clients of a listener and the use of their passwords, with an ETag",
        &["clients_file", "writable", "reason", "clients"],
    ),
    Route {
        query: PLAN,
        success: Success { status: 201, content: SuccessContent::Object(PASSWORD) },
        ..change(
            passwords::add,
            Verb::Post,
            "/v1/listeners/{name}/clients/{user}/passwords",
            "Adds a password of a client, and shows a generated one this once",
        )
    },
    Route {
        query: PLAN,
        ..change(
            passwords::remove,
            Verb::Delete,
            "/v1/listeners/{name}/clients/{user}/passwords/{id}",
            "Removes a password of a client, and ends the sessions that use it",
        )
    },
    Route {
        success: Success { status: 200, content: SuccessContent::File("application/x-pem-file") },
        ..get(
            |call| request(AdminRequest::CaBundleFile { listener: call.segment(0) }),
            "/v1/listeners/{name}/ca-bundle",
            VIEWER,
            "Sends the file with the certificates that clients should trust",
            &[],
        )
    },
    Route {
        query: &[
            Parameter { name: "listener", text: "only sessions of this listener" },
            Parameter { name: "source", text: "only sessions from this address or network" },
            Parameter { name: "client", text: "only sessions whose client certificate has this text in its subject" },
            Parameter { name: "limit", text: "the maximum number of sessions" },
            Parameter { name: "offset", text: "the number of sessions to skip" },
        ],
        ..get(
            |call| Ok(Operation::Request(AdminRequest::Sessions(session_filter(&call.query)?))),
            "/v1/sessions",
            VIEWER,
            "Lists the sessions, oldest first",
            &["sessions", "total"],
        )
    },
    change(close_session, Verb::Delete, "/v1/sessions/{id}", "Closes a session"),
    Route {
        query: &[
            Parameter { name: "listener", text: "only sessions of this listener" },
            Parameter { name: "source", text: "sessions from this address or network" },
            Parameter { name: "client", text: "sessions whose client certificate has exactly this subject" },
            Parameter { name: "fleet", text: "true: at all members of the fleet" },
            WAIT,
        ],
        success: Success { status: 200, content: SuccessContent::Object(&["closed", "members", "missing"]) },
        ..change(close_sessions, Verb::Delete, "/v1/sessions", "Closes the sessions of a client or a source")
    },
    get(
        |_| request(AdminRequest::Certificates),
        "/v1/certificates",
        VIEWER,
        "Lists all certificates with their expiry and use",
        &["certificates"],
    ),
    Route {
        query: &[Parameter { name: "fleet", text: "true: the use at all members of the fleet" }],
        ..get(
            |call| {
                let fleet = call.query.flag("fleet", false)?;
                request(if fleet { AdminRequest::FleetRotation } else { AdminRequest::Rotation })
            },
            "/v1/rotation",
            VIEWER,
            "Lists certificates, CAs and sources with their use",
            &["generation", "items", "members", "missing"],
        )
    },
    get(
        |_| request(AdminRequest::Fleet),
        "/v1/fleet",
        VIEWER,
        "Shows the members of the fleet and its store",
        &["name", "member", "duplicate", "store", "rules", "tickets", "members"],
    ),
    Route {
        success: Success { status: 200, content: SuccessContent::Object(&["epoch", "rules_written", "in_use"]) },
        ..change(
            |_| request(AdminRequest::AcceptStore),
            Verb::Post,
            "/v1/fleet/accept",
            "Accepts the store of the fleet as it is, after it was restored or replaced",
        )
    },
    change(
        |call| request(AdminRequest::ForgetMember(call.segment(0))),
        Verb::Delete,
        "/v1/fleet/members/{name}",
        "Removes a member of the fleet that is gone for good",
    ),
    Route {
        query: &[
            Parameter { name: "listener", text: "only denials by this listener" },
            Parameter { name: "since", text: "only denials of this last time, such as 10m" },
        ],
        ..get(
            |call| Ok(Operation::Request(AdminRequest::Denials(denial_filter(&call.query)?))),
            "/v1/denials",
            VIEWER,
            "Lists denied sources by listener, network and reason",
            &["denials"],
        )
    },
    Route {
        query: &[
            Parameter { name: "listener", text: "name of the listener" },
            Parameter { name: "source", text: "address of the client, or unix" },
        ],
        ..get(
            explain::from_query,
            "/v1/explain",
            VIEWER,
            "Explains step by step whether a connection would be admitted",
            EXPLAIN,
        )
    },
    Route {
        method: Verb::Post,
        ..get(
            explain::from_body,
            "/v1/explain",
            VIEWER,
            "Explains the same for a client certificate, sent as PEM in the body",
            EXPLAIN,
        )
    },
    Route {
        query: PLAN,
        success: Success { status: 200, content: SuccessContent::Object(&["result", "generation", "differences"]) },
        ..change(reload::parse, Verb::Post, "/v1/reload", "Reloads the configuration, completely or not at all")
    },
    Route {
        query: &[
            Parameter { name: "listener", text: "only events of this listener" },
            Parameter { name: "event", text: "only events of this name" },
            Parameter { name: "recent", text: "the number of past events that come first, by default 0, at most 1000" },
            Parameter { name: "follow", text: "false: end after the past events" },
        ],
        success: Success { status: 200, content: SuccessContent::Events },
        ..get(
            |call| Ok(Operation::Request(events(&call.query)?)),
            "/v1/events",
            VIEWER,
            "Sends audit events as they happen",
            &[],
        )
    },
    get(|_| request(AdminRequest::Tokens), "/v1/tokens", OWNER, "Lists the tokens", &["tokens"]),
    Route {
        access: OWNER,
        success: Success { status: 201, content: SuccessContent::Object(&["token", "name", "role", "expires_at"]) },
        ..change(tokens::new, Verb::Post, "/v1/tokens", "Creates a token and shows it this once")
    },
    Route {
        access: OWNER,
        ..change(
            |call| request(AdminRequest::RevokeToken(call.segment(0))),
            Verb::Delete,
            "/v1/tokens/{name}",
            "Removes a token",
        )
    },
    get(
        |call| request(AdminRequest::Firewall { listener: call.segment(0) }),
        "/v2/databases/{id}/firewall",
        VIEWER,
        "Lists the rules of a sources_file as DigitalOcean's API does",
        &["rules"],
    ),
    Route {
        body: BodyLimit::Sources,
        ..change(
            sources::replace,
            Verb::Put,
            "/v2/databases/{id}/firewall",
            "Replaces the rules as DigitalOcean's API does",
        )
    },
    get(
        |call| request(AdminRequest::CaBundle { listener: call.segment(0) }),
        "/v2/databases/{id}/ca",
        VIEWER,
        "Returns the certificates that clients should trust",
        &["ca"],
    ),
    Route {
        method: Verb::Post,
        ..get(
            panel::sign_in,
            "/ui/session",
            RouteAccess::Browser,
            "Opens a session of the control panel",
            PANEL_SESSION,
        )
    },
    get(
        |_| Ok(Operation::PanelSession(PanelSessionOperation::Show)),
        "/ui/session",
        VIEWER,
        "Shows the session of the control panel",
        PANEL_SESSION,
    ),
    Route {
        access: VIEWER,
        ..change(
            |_| Ok(Operation::PanelSession(PanelSessionOperation::SignOut)),
            Verb::Delete,
            "/ui/session",
            "Ends the session of the control panel",
        )
    },
    // Last: it matches the path of the session too.
    Route {
        success: Success { status: 200, content: SuccessContent::Page },
        ..get(panel::file, "/ui/{file}", RouteAccess::Browser, "Returns a file of the control panel", &[])
    },
    Route {
        success: Success { status: 303, content: SuccessContent::Page },
        ..get(|_| Ok(Operation::OpenPanel), "/ui", RouteAccess::Browser, "Shows the control panel", &[])
    },
];

/// Whether a path belongs to DigitalOcean's API, whose errors have fixed words.
pub(crate) fn is_digitalocean(path: &str) -> bool {
    path.starts_with("/v2/")
}

/// A route that reads, with the answer 200.
const fn get(
    parse: Parse,
    path: &'static str,
    access: RouteAccess,
    summary: &'static str,
    fields: &'static [&'static str],
) -> Route {
    Route {
        method: Verb::Get,
        path,
        access,
        body: BodyLimit::Small,
        query: &[],
        summary,
        success: Success { status: 200, content: SuccessContent::Object(fields) },
        parse,
    }
}

/// A change with the answer 204.
const fn change(parse: Parse, method: Verb, path: &'static str, summary: &'static str) -> Route {
    Route {
        method,
        path,
        access: RouteAccess::Role(Role::Operator),
        body: BodyLimit::Small,
        query: &[],
        summary,
        success: Success { status: 204, content: SuccessContent::Empty },
        parse,
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

fn close_sessions(call: &Call<'_>) -> Result<Operation, AdminResponse> {
    let SessionFilter { listener, source, client, .. } = session_filter(&call.query)?;
    if source.is_none() && client.is_none() {
        return Err(invalid("name the sessions to close: client=SUBJECT, source=ADDRESS, or both"));
    }
    let (fleet, wait) = (call.query.flag("fleet", false)?, call.query.wait()?);
    request(AdminRequest::CloseSessions(CloseSessions { listener, source, client, fleet, wait }))
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
    let follow = query.flag("follow", true)?;
    Ok(AdminRequest::Events { filter, recent, follow })
}

const VIEWER: RouteAccess = RouteAccess::Role(Role::Viewer);
const OWNER: RouteAccess = RouteAccess::Role(Role::Owner);

const PLAN_PARAMETER: Parameter = Parameter { name: "plan", text: "true: show what would change, and change nothing" };
const PLAN: &[Parameter] = &[PLAN_PARAMETER];
const PLAN_WAIT: &[Parameter] = &[PLAN_PARAMETER, WAIT];
const WAIT: Parameter = Parameter {
    name: "wait",
    text: "how long to wait for all members of the fleet, such as 5s; the answer is 202 with those that are missing",
};
const RULES: &[&str] = &["rules"];
const CERTIFICATE: &[&str] =
    &["subject", "issuer", "names", "not_before", "not_after", "sha256", "sessions", "file", "listeners"];
const PASSWORD: &[&str] = &["user", "id", "created_at", "expires_at", "state", "sessions", "listeners", "password"];
const STATUS: &[&str] = &["version", "generation", "last_reload", "listeners", "source_groups"];
const PANEL_SESSION: &[&str] = &["name", "role", "expires_at", "source", "idle_timeout_seconds", "ends_at"];
const EXPLAIN: &[&str] = &["steps", "verdict", "reason", "rule", "group"];

/// Past events of one response.
const MAX_RECENT: usize = 1_000;
