//! JSON schemas of a Kubernetes' objects, for `kubeconform -strict`: made of what its API says of itself.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

const DEFINITIONS: &str = "_definitions.json";

/// Where kubeconform finds schemas that [`write`] wrote.
#[must_use]
pub fn location(dir: &Path) -> String {
    format!("{}/{{{{ .ResourceKind }}}}{{{{ .KindSuffix }}}}.json", dir.display())
}

/// Writes a schema for each kind that a swagger file defines under `dir`.
///
/// # Errors
/// When that cannot be read or these not be written.
pub fn write(swagger: &Path, dir: &Path) -> Result<()> {
    let mut swagger: Value = serde_json::from_slice(&fs::read(swagger)?)?;
    let definitions = swagger["definitions"].as_object_mut().context("no definitions")?;
    definitions.values_mut().for_each(make_strict);
    definitions["io.k8s.apimachinery.pkg.api.resource.Quantity"] = either("number");
    fs::create_dir_all(dir)?;
    for schema in definitions.values() {
        for kind in schema["x-kubernetes-group-version-kind"].as_array().into_iter().flatten() {
            fs::write(dir.join(file_name(kind)), schema.to_string())?;
        }
    }
    Ok(fs::write(dir.join(DEFINITIONS), json!({ "definitions": definitions }).to_string())?)
}

/// `deployment-apps-v1.json`: of a group, its first word alone.
fn file_name(kind: &Value) -> String {
    let [group, version, kind] = ["group", "version", "kind"].map(|key| kind[key].as_str().unwrap_or_default());
    let words = [kind.to_lowercase().as_str(), group.split('.').next().unwrap_or_default(), version].map(str::to_owned);
    format!("{}.json", words.join("-").replace("--", "-"))
}

/// Refuses what an object has beside its properties, and lets references point to the file of definitions.
fn make_strict(schema: &mut Value) {
    match schema {
        Value::Object(fields) if fields.get("format") == Some(&json!("int-or-string")) => *schema = either("integer"),
        Value::Object(fields) => {
            fields.values_mut().for_each(make_strict);
            close(fields);
        }
        Value::Array(schemas) => schemas.iter_mut().for_each(make_strict),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn close(fields: &mut Map<String, Value>) {
    if let Some(Value::String(reference)) = fields.get_mut("$ref") {
        reference.insert_str(0, DEFINITIONS);
    }
    // A property may be called "properties", and is then an object's schema itself.
    if fields.get("type") == Some(&json!("object")) && fields.get("properties").is_some_and(Value::is_object) {
        fields.entry("additionalProperties").or_insert(json!(false));
    }
}

fn either(kind: &str) -> Value {
    json!({ "oneOf": [{ "type": "string" }, { "type": kind }] })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schema_refuses_unknown_properties_and_finds_its_parts() {
        let mut schema = json!({
            "type": "object",
            "properties": { "port": { "format": "int-or-string", "type": "string" }, "of": { "$ref": "#/definitions/a" } },
        });
        make_strict(&mut schema);
        assert_eq!(schema["additionalProperties"], false);
        assert_eq!(schema["properties"]["port"], either("integer"));
        assert_eq!(schema["properties"]["of"]["$ref"], "_definitions.json#/definitions/a");
    }

    #[test]
    fn files_are_named_as_kubeconform_looks_for_them() {
        let of = |group: &str, kind: &str| file_name(&json!({ "group": group, "version": "v1", "kind": kind }));
        assert_eq!(of("", "Pod"), "pod-v1.json");
        assert_eq!(of("rbac.authorization.k8s.io", "ClusterRole"), "clusterrole-rbac-v1.json");
    }
}
