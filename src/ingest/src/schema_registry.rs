//! Asks a Confluent schema registry for the schemas of Avro's writers, each once. Knows no message.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Deserialize;

use crate::decode::avro::{Writer, Writers};
use crate::error::Error;

/// References to references deeper than this are no schema.
const DEEPEST: usize = 16;

/// Where a schema registry is, and who asks.
#[derive(Clone, PartialEq, Eq)]
pub struct Settings {
    /// `http://host:port`, as in Confluent's `schema.registry.url`; one behind the other with commas, of which the next
    /// is asked where one fails.
    pub url: String,
    /// User and password, if it asks for them.
    pub user: Option<(String, String)>,
    /// How long an answer may take.
    pub timeout: Duration,
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settings").field("url", &self.url).field("timeout", &self.timeout).finish_non_exhaustive()
    }
}

/// The client, and what it was told: a schema's id never means another schema.
pub struct SchemaRegistry {
    settings: Settings,
    client: reqwest::Client,
    known: Mutex<Writers>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    schema: String,
    schema_type: Option<String>,
    #[serde(default)]
    references: Vec<Reference>,
}

#[derive(Deserialize)]
struct Reference {
    subject: String,
    version: u32,
}

/// Why there is no answer.
enum Failure {
    /// It may come later.
    Away(String),
    /// There is none with that id.
    None,
    /// It cannot be used.
    Unusable(String),
}

impl SchemaRegistry {
    /// A client.
    ///
    /// Errors: settings that cannot be.
    pub fn new(settings: Settings) -> Result<Self, Error> {
        let refuse = |reason: String| Error::Setting { name: "schema_registry", reason };
        let starts = |url: &str| url.starts_with("http://") || url.starts_with("https://");
        if settings.url.is_empty() || !settings.url.split(',').all(|url| starts(url.trim())) {
            return Err(refuse(format!("url {:?} is no http(s) address", settings.url)));
        }
        let client = reqwest::Client::builder().timeout(settings.timeout).build();
        let client = client.map_err(|e| refuse(format!("no client can be made for it: {e}")))?;
        Ok(Self { settings, client, known: Mutex::default() })
    }

    /// The schemas with these ids; those that the registry does not have, or that cannot be used, are left out.
    ///
    /// Errors: a registry that does not answer.
    pub async fn schemas(&self, ids: &BTreeSet<u32>) -> Result<Writers, String> {
        let mut found = BTreeMap::new();
        for &id in ids {
            let known = self.known().get(&id).cloned();
            if let Some(writer) = known {
                found.insert(id, writer);
                continue;
            }
            match self.schema(id).await {
                Ok(writer) => {
                    let writer = Arc::new(writer);
                    self.known().insert(id, Arc::clone(&writer));
                    found.insert(id, writer);
                }
                Err(Failure::Away(reason)) => return Err(reason),
                Err(Failure::None) => {}
                Err(Failure::Unusable(reason)) => {
                    tracing::warn!(id, reason, "a schema of the schema registry cannot be used");
                }
            }
        }
        Ok(found)
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Writers> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn schema(&self, id: u32) -> Result<Writer, Failure> {
        let answer = self.ask(&format!("/schemas/ids/{id}")).await?;
        if let Some(other) = answer.schema_type.filter(|kind| kind != "AVRO") {
            return Err(Failure::Unusable(format!("it is {other}, not AVRO")));
        }
        let mut others = Vec::new();
        let mut waiting: Vec<(usize, Reference)> = answer.references.into_iter().map(|r| (0, r)).collect();
        let mut seen = BTreeSet::new();
        while let Some((depth, reference)) = waiting.pop() {
            if depth > DEEPEST {
                return Err(Failure::Unusable(format!("its references are deeper than {DEEPEST}")));
            }
            if !seen.insert((reference.subject.clone(), reference.version)) {
                continue;
            }
            let subject: String = reference.subject.bytes().map(escaped).collect();
            let answer = self.ask(&format!("/subjects/{subject}/versions/{}", reference.version)).await?;
            waiting.extend(answer.references.into_iter().map(|r| (depth + 1, r)));
            others.push(answer.schema);
        }
        Writer::parse(&answer.schema, &others).map_err(Failure::Unusable)
    }

    async fn ask(&self, path: &str) -> Result<Answer, Failure> {
        let mut last = None;
        for url in self.settings.url.split(',') {
            let url = format!("{}{path}", url.trim().trim_end_matches('/'));
            match self.ask_one(&url).await {
                Err(Failure::Away(reason)) => last = Some(reason),
                other => return other,
            }
        }
        Err(Failure::Away(last.unwrap_or_default()))
    }

    async fn ask_one(&self, url: &str) -> Result<Answer, Failure> {
        let mut request = self.client.get(url);
        if let Some((user, password)) = &self.settings.user {
            request = request.basic_auth(user, Some(password));
        }
        let away = |e: reqwest::Error| {
            let cause = std::error::Error::source(&e).map(|c| format!(": {c}")).unwrap_or_default();
            Failure::Away(format!("{e}{cause}"))
        };
        let answer = request.send().await.map_err(away)?;
        let status = answer.status();
        if status == reqwest::StatusCode::NOT_FOUND {
            return Err(Failure::None);
        }
        if !status.is_success() {
            return Err(Failure::Away(format!("{url} answers {status}")));
        }
        let bytes = answer.bytes().await.map_err(away)?;
        serde_json::from_slice(&bytes).map_err(|e| Failure::Away(format!("{url} answers with what is no schema: {e}")))
    }
}

/// A byte in a path.
fn escaped(byte: u8) -> String {
    if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
        char::from(byte).to_string()
    } else {
        format!("%{byte:02X}")
    }
}
