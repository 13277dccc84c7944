//! The OpenAPI 3.1 description, generated from the table of routes.

use serde_json::{Map, Value, json};

use crate::control::error::ErrorKind;
use crate::control::route::{BodyLimit, Parameter, Route, RouteAccess, SuccessContent};
use crate::control::routes::ROUTES;
use crate::credential::clients::ID_PATTERN;
use crate::credential::password::MAX_LENGTH;
use crate::issuing::bundle::NOT_AFTER_HEADER;
use crate::issuing::client_request::{DEFAULT_DAYS, MAX_DAYS, MAX_DNS, NAME_PATTERN};
use crate::issuing::params::{DNS_NAME_PATTERN, MAX_DNS_NAME};
use crate::source::cloud::CloudSource;
use crate::source::rule::Source;

/// The response to `GET /`.
pub(crate) fn paths() -> Value {
    let path = |route: &Route| json!({ "method": route.method.as_str(), "path": route.path, "role": role(route), "does": route.summary });
    json!({ "paths": described().map(path).collect::<Vec<_>>() })
}

/// The response to `GET /v1/openapi.json`.
pub(crate) fn description() -> Value {
    let mut paths = Map::new();
    for route in described() {
        let methods = paths.entry(route.path).or_insert_with(|| json!({}));
        if let Some(methods) = methods.as_object_mut() {
            methods.insert(route.method.as_str().to_lowercase(), operation(route));
        }
    }
    json!({
        "openapi": "3.1.0",
        "info": { "title": "Portcullis admin API", "version": env!("CARGO_PKG_VERSION") },
        "paths": paths,
        "components": {
            "securitySchemes": { "token": { "type": "http", "scheme": "bearer" } },
            "schemas": { "Error": error_schema(), "Rule": rule_schema() },
        },
    })
}

/// All routes of the API. The files of the panel are for browsers only.
fn described() -> impl Iterator<Item = &'static Route> {
    ROUTES.iter().filter(|route| route.success.content != SuccessContent::Page)
}

fn operation(route: &Route) -> Value {
    let mut parameters: Vec<Value> = route
        .path
        .split('/')
        .filter_map(|segment| segment.strip_prefix('{')?.strip_suffix('}'))
        .map(|name| json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } }))
        .collect();
    parameters.extend(route.query.iter().map(|Parameter { name, text }| {
        json!({ "name": name, "in": "query", "required": false, "description": text, "schema": { "type": "string" } })
    }));
    let mut operation = json!({
        "summary": route.summary,
        "parameters": parameters,
        "responses": responses(route),
        "x-role": role(route),
    });
    if let Some(fields) = operation.as_object_mut() {
        if matches!(route.access, RouteAccess::Role(_)) {
            fields.insert("security".to_owned(), json!([{ "token": [] }]));
        }
        if let Some(schema) = body_schema(route) {
            let body = json!({ "content": { "application/json": { "schema": schema } } });
            fields.insert("requestBody".to_owned(), body);
        }
    }
    operation
}

fn role(route: &Route) -> Option<&'static str> {
    match route.access {
        RouteAccess::Public | RouteAccess::Browser => None,
        RouteAccess::Role(role) => Some(role.code()),
    }
}

fn responses(route: &Route) -> Value {
    let success = match route.success.content {
        SuccessContent::Empty | SuccessContent::Page => json!({ "description": "done" }),
        SuccessContent::Object(names) => {
            let fields: Map<_, _> = names.iter().map(|name| ((*name).to_owned(), json!({}))).collect();
            let schema = json!({ "type": "object", "properties": fields });
            json!({ "description": "done", "content": { "application/json": { "schema": schema } } })
        }
        SuccessContent::File(content_type) => {
            let schema = json!({ "type": "string", "format": "binary" });
            let mut success = json!({ "description": "a file", "content": { content_type: { "schema": schema } } });
            if let (true, Some(fields)) = (route.path.ends_with("/issue"), success.as_object_mut()) {
                let end = json!({ "type": "string", "format": "date-time" });
                let header = json!({ "description": "when the certificate expires", "schema": end });
                fields.insert("headers".to_owned(), json!({ NOT_AFTER_HEADER: header }));
            }
            success
        }
        SuccessContent::Events => {
            json!({ "description": "audit events", "content": { "text/event-stream": { "schema": { "type": "string" } } } })
        }
    };
    let error = json!({
        "description": "an error",
        "content": { "application/json": { "schema": { "$ref": "#/components/schemas/Error" } } },
    });
    let mut responses = Map::new();
    responses.insert(route.success.status.to_string(), success);
    if route.query.iter().any(|parameter| parameter.name == "plan") && route.success.status != 200 {
        responses.insert("200".to_owned(), json!({ "description": "what would change, with plan=true" }));
    }
    responses.insert("default".to_owned(), error);
    Value::Object(responses)
}

/// The schema of the body; `None` for routes without one.
fn body_schema(route: &Route) -> Option<Value> {
    let rules = json!({
        "type": "object",
        "required": ["rules"],
        "properties": { "rules": { "type": "array", "items": { "$ref": "#/components/schemas/Rule" } } },
    });
    let text = || json!({ "type": "string" });
    match (route.method.as_str(), route.path) {
        (_, _) if route.body == BodyLimit::Sources => Some(rules),
        ("POST", "/v1/explain") => Some(json!({
            "type": "object",
            "required": ["listener", "source"],
            "properties": { "listener": text(), "source": text(), "client_certificate": text() },
        })),
        ("POST", "/ui/session") => Some(json!({
            "type": "object",
            "required": ["token"],
            "properties": { "token": text() },
        })),
        ("POST", "/v1/listeners/{name}/client-certificates") => Some(json!({
            "type": "object",
            "required": ["certificate"],
            "properties": { "certificate": text() },
        })),
        ("POST", "/v1/listeners/{name}/client-certificates/issue") => Some(json!({
            "type": "object",
            "required": ["name"],
            "properties": {
                "name": { "type": "string", "pattern": NAME_PATTERN },
                "days": { "type": "integer", "minimum": 1, "maximum": MAX_DAYS, "default": DEFAULT_DAYS,
                    "description": "without it, the certificate ends with the CA if that is earlier" },
                "dns": {
                    "type": "array",
                    "maxItems": MAX_DNS,
                    "items": { "type": "string", "maxLength": MAX_DNS_NAME, "pattern": DNS_NAME_PATTERN },
                },
            },
        })),
        ("POST", "/v1/listeners/{name}/clients/{user}/passwords") => Some(json!({
            "type": "object",
            "properties": {
                "password": { "type": ["string", "null"], "writeOnly": true, "maxLength": MAX_LENGTH,
                    "description": "without it, one is generated and is in the answer" },
                "id": { "type": ["string", "null"], "pattern": ID_PATTERN },
                "expires_at": { "type": ["string", "null"], "format": "date-time" },
                "ttl": { "type": ["string", "null"], "examples": ["90d"] },
            },
        })),
        ("POST", "/v1/reload") => Some(json!({ "type": "object", "properties": { "file": text() } })),
        ("POST", "/v1/tokens") => Some(json!({
            "type": "object",
            "required": ["name", "role"],
            "properties": {
                "name": text(),
                "role": { "enum": ["viewer", "operator", "owner"] },
                "ttl": text(),
                "sources": { "type": "array", "items": text() },
            },
        })),
        _ => None,
    }
}

fn error_schema() -> Value {
    json!({
        "type": "object",
        "required": ["id", "message", "request_id"],
        "properties": {
            "id": { "type": "string", "examples": [ErrorKind::NotFound.id(), ErrorKind::Unprocessable.id()] },
            "message": { "type": "string" },
            "request_id": { "type": "string" },
        },
    })
}

fn rule_schema() -> Value {
    let kinds: Vec<_> = [Source::IP_ADDR, Source::DNS, Source::GROUP].into_iter().chain(CloudSource::KINDS).collect();
    json!({
        "type": "object",
        "required": ["type", "value"],
        "properties": {
            "type": { "type": "string", "enum": kinds },
            "value": { "type": "string", "examples": ["203.0.113.7", "10.0.0.0/8", "backend", "pods:shop:app=web", "web"] },
            "description": { "type": ["string", "null"] },
            "expires_at": { "type": ["string", "null"], "format": "date-time" },
            "ttl": { "type": "string", "examples": ["2h"] },
            "uuid": { "type": "string", "readOnly": true },
            "created_at": { "type": "string", "format": "date-time", "readOnly": true },
            "addresses": { "type": "array", "items": { "type": "string" }, "readOnly": true },
            "addresses_count": { "type": "integer", "readOnly": true },
            "objects": {
                "type": "object", "additionalProperties": { "type": "string" }, "readOnly": true,
                "examples": [{ "10.0.0.7": "droplet web-1" }],
            },
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_of_a_client_certificate_are_described() {
        let description = description();
        let issue = &description["paths"]["/v1/listeners/{name}/client-certificates/issue"]["post"];
        let body = &issue["requestBody"]["content"]["application/json"]["schema"]["properties"];
        assert_eq!((&body["days"]["minimum"], &body["days"]["maximum"]), (&json!(1), &json!(3650)));
        assert_eq!((&body["days"]["default"], &body["dns"]["maxItems"]), (&json!(90), &json!(16)));
        assert_eq!(body["dns"]["items"]["maxLength"], 253);
        assert!(body["name"]["pattern"].is_string() && body["dns"]["items"]["pattern"].is_string());
    }

    #[test]
    fn description_has_exactly_the_routes() {
        let description = description();
        let paths = description["paths"].as_object().unwrap();
        let described: usize = paths.values().map(|methods| methods.as_object().unwrap().len()).sum();
        assert_eq!(described, ROUTES.len() - 2, "all but the page and its files");
        for route in super::described() {
            let operation = &paths[route.path][route.method.as_str().to_lowercase()];
            assert_eq!(operation["summary"], route.summary);
            assert_eq!(operation["x-role"].as_str(), role(route), "{}", route.path);
        }
    }
}
