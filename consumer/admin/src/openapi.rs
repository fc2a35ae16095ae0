//! The OpenAPI document of the admin HTTP server, built from the endpoint list below and the types' schemas.

use std::sync::LazyLock;

use schemars::generate::{SchemaGenerator, SchemaSettings};
use schemars::{JsonSchema, Schema};
use serde_json::{Map, Value, json};
use sluicegate_engine::status::{Explanation, HandlerReport, PartitionReport};

use super::http::{
    ControlPlaneAcceptance, ErrorBody, GateBody, GateChange, HandlerRestart, Readiness,
    StatusReport,
};

/// Response body of an endpoint.
enum Answer {
    Text,
    Metrics,
    Document,
    Json(fn(&mut SchemaGenerator) -> Schema),
}

struct Endpoint {
    method: &'static str,
    path: &'static str,
    summary: &'static str,
    answer: Answer,
    body: Option<fn(&mut SchemaGenerator) -> Schema>,
    /// Error statuses in addition to 503, which every endpoint can return.
    errors: &'static [(u16, &'static str)],
}

const fn read(path: &'static str, summary: &'static str, answer: Answer) -> Endpoint {
    Endpoint {
        method: "get",
        path,
        summary,
        answer,
        body: None,
        errors: &[],
    }
}

fn schema<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

fn endpoints() -> Vec<Endpoint> {
    let mut all = reads();
    all.extend(writes());
    all
}

fn reads() -> Vec<Endpoint> {
    let explain = |path, summary| Endpoint {
        errors: &[
            (400, "Partition or offset is not a number"),
            (404, "The partition is not assigned here"),
        ],
        ..read(path, summary, Answer::Json(schema::<Explanation>))
    };
    vec![
        read("/livez", "Whether the process is alive", Answer::Text),
        read(
            "/readyz",
            "Readiness of the service and its current problems; 503 before the first join, while Kafka is unreachable beyond `processing.stall_timeout`, while no enabled handler takes records, and during shutdown",
            Answer::Json(schema::<Readiness>),
        ),
        read(
            "/metrics",
            "Metrics in Prometheus' text format",
            Answer::Metrics,
        ),
        read(
            "/api/v1/status",
            "Status of the service",
            Answer::Json(schema::<StatusReport>),
        ),
        read(
            "/api/v1/handlers",
            "All handlers",
            Answer::Json(schema::<Vec<HandlerReport>>),
        ),
        Endpoint {
            errors: &[(404, "No such handler")],
            ..read(
                "/api/v1/handlers/{name}",
                "One handler",
                Answer::Json(schema::<HandlerReport>),
            )
        },
        read(
            "/api/v1/partitions",
            "All partitions assigned to this process",
            Answer::Json(schema::<Vec<PartitionReport>>),
        ),
        explain(
            "/api/v1/explain/{topic}/{partition}",
            "What blocks a partition's frontier",
        ),
        explain(
            "/api/v1/explain/{topic}/{partition}/{offset}",
            "State of one record",
        ),
        read("/api/v1/openapi.json", "This document", Answer::Document),
    ]
}

/// Changing endpoints; they accept requests from this machine only.
fn writes() -> Vec<Endpoint> {
    vec![
        Endpoint {
            method: "put",
            body: Some(schema::<GateBody>),
            errors: &[
                (400, "The body is not a gate"),
                (403, "The request does not originate from this machine"),
                (404, "No such handler"),
                (
                    409,
                    "The control plane rejected the write, the gate is not closed, the handler is not serving, or it is deleted and draining",
                ),
            ],
            ..read(
                "/api/v1/handlers/{name}/gate",
                "Writes the handler's gate to its control plane, and responds once the service has applied it",
                Answer::Json(schema::<GateChange>),
            )
        },
        Endpoint {
            method: "post",
            errors: &[
                (403, "The request does not originate from this machine"),
                (404, "No such handler"),
                (
                    409,
                    "The new generation was refused or not ready in time, or the handler is deleted",
                ),
            ],
            ..read(
                "/api/v1/handlers/{name}/restart",
                "Builds a new generation of the handler, replacing the one that serves or has failed",
                Answer::Json(schema::<HandlerRestart>),
            )
        },
        Endpoint {
            method: "post",
            errors: &[(403, "The request does not originate from this machine")],
            ..read(
                "/api/v1/control-plane/accept",
                "Applies control-plane state that is held back because it appears to be another store's or the result of a loss",
                Answer::Json(schema::<ControlPlaneAcceptance>),
            )
        },
    ]
}

/// The document.
pub fn document() -> &'static Value {
    static DOCUMENT: LazyLock<Value> = LazyLock::new(build);
    &DOCUMENT
}

fn build() -> Value {
    let mut generator = SchemaSettings::openapi3().into_generator();
    let mut paths = Map::new();
    for endpoint in endpoints() {
        let operation = operation(&endpoint, &mut generator);
        let path = paths.entry(endpoint.path).or_insert_with(|| json!({}));
        path[endpoint.method] = operation;
    }
    let schemas = generator.take_definitions(true);
    json!({
        "openapi": "3.0.3",
        "info": {
            "title": "Sluicegate admin API",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Status of a running service and control of its handlers.",
        },
        "paths": paths,
        "components": { "schemas": schemas },
    })
}

fn operation(endpoint: &Endpoint, generator: &mut SchemaGenerator) -> Value {
    let content = match &endpoint.answer {
        Answer::Text | Answer::Metrics => {
            json!({ "text/plain": { "schema": { "type": "string" } } })
        }
        Answer::Document => json!({ "application/json": { "schema": { "type": "object" } } }),
        Answer::Json(schema) => json!({ "application/json": { "schema": schema(generator) } }),
    };
    let error = schema::<ErrorBody>(generator);
    let mut responses = Map::new();
    responses.insert(
        "200".to_owned(),
        json!({ "description": "Success", "content": content }),
    );
    let busy = (503, "Not ready, too busy, or timed out");
    for (status, description) in endpoint.errors.iter().chain([&busy]) {
        let answer = json!({
            "description": description,
            "content": { "application/json": { "schema": error } },
        });
        responses.insert(status.to_string(), answer);
    }
    let mut operation = json!({
        "summary": endpoint.summary,
        "operationId": operation_id(endpoint),
        "parameters": parameters(endpoint.path),
        "responses": responses,
    });
    if let Some(body) = endpoint.body {
        let content = json!({ "application/json": { "schema": body(generator) } });
        operation["requestBody"] = json!({ "required": true, "content": content });
    }
    operation
}

fn operation_id(endpoint: &Endpoint) -> String {
    let words = endpoint
        .path
        .split(['/', '.'])
        .filter(|word| !matches!(*word, "" | "api" | "v1"));
    words.fold(endpoint.method.to_owned(), |id, word| {
        let joint = if word.starts_with('{') { "_by_" } else { "_" };
        id + joint + word.trim_matches(['{', '}'])
    })
}

fn parameters(path: &str) -> Vec<Value> {
    let names = path
        .split('/')
        .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    names
        .map(|name| {
            let kind = match name {
                "partition" => json!({ "type": "integer", "format": "int32" }),
                "offset" => json!({ "type": "integer", "format": "int64" }),
                _ => json!({ "type": "string" }),
            };
            json!({ "name": name, "in": "path", "required": true, "schema": kind })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn references(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(map) => {
                if let Some(Value::String(reference)) = map.get("$ref") {
                    found.push(reference.clone());
                }
                map.values().for_each(|value| references(value, found));
            }
            Value::Array(list) => list.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }

    #[test]
    fn the_reference_page_has_every_path() {
        let page = include_str!("../../../docs/reference/admin.md");
        for endpoint in endpoints() {
            let request = format!("| `{} {}` |", endpoint.method.to_uppercase(), endpoint.path);
            assert!(
                page.contains(&request),
                "docs/reference/admin.md lacks {request}"
            );
        }
    }

    #[test]
    fn every_reference_leads_to_a_schema_and_every_operation_has_its_own_id() {
        let document = document();
        let mut found = Vec::new();
        references(document, &mut found);
        assert!(found.len() > 10, "{found:?}");
        for reference in found {
            let pointer = reference
                .strip_prefix('#')
                .expect("a reference into the document");
            assert!(
                document.pointer(pointer).is_some(),
                "{reference} leads nowhere"
            );
        }
        let paths = document["paths"].as_object().expect("paths");
        let operations = paths
            .values()
            .flat_map(|path| path.as_object().expect("operations").values());
        let mut ids: Vec<&str> = operations
            .map(|operation| operation["operationId"].as_str().expect("an id"))
            .collect();
        let all = ids.len();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), all);
        assert!(
            ids.contains(&"get_explain_by_topic_by_partition_by_offset"),
            "{ids:?}"
        );
    }
}
