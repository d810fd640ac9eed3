//! The commands that the SDK puts into a Flight descriptor: JSON with `api` and its parameters.
//! Source: `feast/infra/offline_stores/remote.py`.

use model::{Error, Kind, Result, Timestamp};
use proto::feast::core::table_format::DeltaFormat;
use proto::feast::core::{DataSource, FileFormat, data_source::FileOptions, data_source::Options, file_format::Format};
use serde::Deserialize;

use crate::plan::{AskedView, HistoricalRequest};
use crate::pull::Pull;

/// What a command asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Api {
    Historical,
    PullLatest,
    PullAll,
    Columns,
    WriteBatch,
    WriteLogged,
    Persist,
    Validate,
}

const APIS: [(&str, Api); 8] = [
    ("get_historical_features", Api::Historical),
    ("pull_latest_from_table_or_query", Api::PullLatest),
    ("pull_all_from_table_or_query", Api::PullAll),
    ("get_table_column_names_and_types_from_data_source", Api::Columns),
    ("offline_write_batch", Api::WriteBatch),
    ("write_logged_features", Api::WriteLogged),
    ("persist", Api::Persist),
    ("validate_data_source", Api::Validate),
];

impl Api {
    fn parse(name: &str) -> Result<Self> {
        APIS.iter().find(|(known, _)| *known == name).map(|(_, api)| *api).ok_or_else(|| {
            let known: Vec<&str> = APIS.iter().map(|(name, _)| *name).collect();
            Error::new(Kind::Unsupported, format!("Unknown api '{name}': the offline server has {}", known.join(", ")))
        })
    }

    /// Feast's name.
    pub(crate) fn as_str(self) -> &'static str {
        APIS.iter().find(|(_, api)| *api == self).map_or("unknown", |(name, _)| name)
    }

    /// Whether it gives a table (and so is fetched), rather than writes one.
    pub(crate) fn is_read(self) -> bool {
        matches!(self, Self::Historical | Self::PullLatest | Self::PullAll | Self::Columns)
    }
}

/// A command, read.
#[derive(Clone, Debug)]
pub(crate) struct Command {
    pub(crate) api: Api,
    fields: Fields,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Fields {
    api: Option<String>,
    project: Option<String>,
    feature_view_names: Option<Vec<String>>,
    name_aliases: Option<Vec<Option<String>>>,
    feature_refs: Option<Vec<String>>,
    full_feature_names: Option<bool>,
    filter_by_created_timestamp: Option<bool>,
    start_date: Option<String>,
    end_date: Option<String>,
    entity_df_sql: Option<String>,
    data_source_name: Option<String>,
    join_key_columns: Option<Vec<String>>,
    feature_name_columns: Option<Vec<String>>,
    timestamp_field: Option<String>,
    created_timestamp_column: Option<String>,
    data_source_proto: Option<String>,
    feature_service_name: Option<String>,
    retrieve_func: Option<String>,
    allow_overwrite: Option<bool>,
}

impl Command {
    /// Reads a descriptor's command.
    ///
    /// Errors: no JSON object, no `api`, or one that there is not.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self> {
        let refuse = |e: serde_json::Error| {
            Error::invalid(format!("the flight descriptor's command is not what a Feast client sends: {e}"))
        };
        // An object: of an array, serde would take the elements in the order of the fields.
        let object: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(bytes).map_err(refuse)?;
        let fields = Fields::deserialize(serde_json::Value::Object(object)).map_err(refuse)?;
        let api = fields.api.as_deref().ok_or_else(|| mandatory("api"))?;
        Ok(Self { api: Api::parse(api)?, fields })
    }

    /// The project, where the command names one.
    pub(crate) fn project(&self) -> Option<&str> {
        self.fields.project.as_deref()
    }

    /// The entity rows as SQL.
    pub(crate) fn entity_sql(&self) -> Option<&str> {
        self.fields.entity_df_sql.as_deref()
    }

    /// The span of time instead of entity rows.
    pub(crate) fn span(&self) -> Result<(Option<Timestamp>, Option<Timestamp>)> {
        let read = |text: &Option<String>| text.as_deref().map(Timestamp::parse).transpose();
        Ok((read(&self.fields.start_date)?, read(&self.fields.end_date)?))
    }

    /// The feature service whose features a historical request asks for, where it names no features itself.
    pub(crate) fn whole_service(&self) -> Option<&str> {
        self.fields.feature_service_name.as_deref().filter(|_| self.fields.feature_refs.is_none())
    }

    /// A historical request for the features that it names.
    pub(crate) fn historical(&self) -> Result<HistoricalRequest> {
        let names = self.fields.feature_view_names.as_ref().ok_or_else(|| mandatory("feature_view_names"))?;
        let aliases = self.fields.name_aliases.as_deref().unwrap_or_default();
        Ok(HistoricalRequest {
            project: self.historical_project()?.to_owned(),
            views: names
                .iter()
                .enumerate()
                .map(|(i, name)| AskedView {
                    name: name.clone(),
                    alias: aliases.get(i).cloned().flatten(),
                    ..AskedView::default()
                })
                .collect(),
            refs: self.fields.feature_refs.clone().ok_or_else(|| mandatory("feature_refs"))?,
            full_feature_names: self.full_feature_names(),
            known: self.known(),
        })
    }

    /// The project, which a historical request must name.
    pub(crate) fn historical_project(&self) -> Result<&str> {
        self.project().ok_or_else(|| mandatory("project"))
    }

    pub(crate) fn full_feature_names(&self) -> bool {
        self.fields.full_feature_names.unwrap_or(false)
    }

    /// Whether rows count only from when they became known on: Feast's parameter, which its client does not send (0.67).
    pub(crate) fn known(&self) -> Option<bool> {
        self.fields.filter_by_created_timestamp
    }

    pub(crate) fn pull(&self, latest: bool) -> Result<Pull> {
        let (start, end) = self.span()?;
        if latest && (start.is_none() || end.is_none()) {
            return Err(mandatory(if start.is_none() { "start_date" } else { "end_date" }));
        }
        Ok(Pull {
            join_keys: self.fields.join_key_columns.clone().ok_or_else(|| mandatory("join_key_columns"))?,
            features: self.fields.feature_name_columns.clone().ok_or_else(|| mandatory("feature_name_columns"))?,
            time: self.fields.timestamp_field.clone().ok_or_else(|| mandatory("timestamp_field"))?,
            created: self.fields.created_timestamp_column.clone(),
            from: start.map(Timestamp::micros),
            to: end.map(Timestamp::micros),
            latest,
        })
    }

    pub(crate) fn data_source_name(&self) -> Result<&str> {
        self.fields.data_source_name.as_deref().ok_or_else(|| mandatory("data_source_name"))
    }

    pub(crate) fn feature_service(&self) -> Result<&str> {
        self.fields.feature_service_name.as_deref().ok_or_else(|| mandatory("feature_service_name"))
    }

    /// The one view that a batch is written for.
    pub(crate) fn one_view(&self) -> Result<&str> {
        match self.fields.feature_view_names.as_deref() {
            Some([name]) => Ok(name),
            Some(_) => Err(Error::invalid("feature_view_names list should only have one item")),
            None => Err(mandatory("feature_view_names")),
        }
    }

    /// What a `persist` persists, and whether over what is there.
    pub(crate) fn persisted(&self) -> Result<(Self, bool)> {
        let api = Api::parse(self.fields.retrieve_func.as_deref().ok_or_else(|| mandatory("retrieve_func"))?)?;
        if !api.is_read() {
            return Err(Error::invalid(format!("{} gives no rows to persist", api.as_str())));
        }
        // One parameter says for a pull where rows come from, and for `persist` where they go: the client sends the former.
        if let (Api::PullLatest | Api::PullAll, Some(source)) = (api, &self.fields.data_source_name) {
            return Err(Error::invalid(format!(
                "pulled rows would be written over '{source}', the source that they are pulled from: Feast's client does \
                 not say where else; read them, and write them"
            )));
        }
        Ok((Self { api, fields: self.fields.clone() }, self.fields.allow_overwrite.unwrap_or(false)))
    }

    /// The data source that the command carries in protobuf's JSON.
    pub(crate) fn data_source(&self) -> Result<DataSource> {
        let text = self.fields.data_source_proto.as_deref().ok_or_else(|| mandatory("data_source_proto"))?;
        let json: JsonSource = serde_json::from_str(text)
            .map_err(|e| Error::invalid(format!("data_source_proto is not a feast.core.DataSource in JSON: {e}")))?;
        let options = json.file_options.map(|o| {
            #[allow(deprecated, reason = "the one way in which the SDK says Delta")]
            let delta = o
                .file_format
                .filter(|f| !f.delta_format.is_null())
                .map(|_| FileFormat { format: Some(Format::DeltaFormat(DeltaFormat::default())) });
            Options::FileOptions(FileOptions {
                uri: o.uri,
                s3_endpoint_override: o.s3_endpoint_override,
                file_format: delta,
            })
        });
        Ok(DataSource {
            name: json.name,
            timestamp_field: json.timestamp_field,
            created_timestamp_column: json.created_timestamp_column,
            field_mapping: json.field_mapping,
            options,
            ..DataSource::default()
        })
    }
}

/// The parts of `feast.core.DataSource` in JSON that say where a file source is.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct JsonSource {
    name: String,
    timestamp_field: String,
    created_timestamp_column: String,
    field_mapping: std::collections::BTreeMap<String, String>,
    file_options: Option<JsonFileOptions>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct JsonFileOptions {
    uri: String,
    s3_endpoint_override: String,
    file_format: Option<JsonFormat>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct JsonFormat {
    delta_format: serde_json::Value,
}

fn mandatory(parameter: &str) -> Error {
    Error::invalid(format!("{parameter} is a mandatory parameter"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_sdk_sends_and_names_what_is_missing() {
        let text = br#"{"command_id": "x", "api": "get_historical_features", "feature_view_names": ["v", "w"],
            "feature_refs": ["v:f", "a:g"], "project": "p", "full_feature_names": true, "name_aliases": [null, "a"],
            "progress": null}"#;
        let request = Command::parse(text).expect("command").historical().expect("request");
        let of = |name: &str, alias: Option<&str>| AskedView {
            name: name.to_owned(),
            alias: alias.map(str::to_owned),
            join_key_map: None,
        };
        assert_eq!(request.views, [of("v", None), of("w", Some("a"))]);
        assert!(request.full_feature_names);
        for (text, want) in [
            ("[]", "command"),
            ("{", "command"),
            ("{}", "api is a mandatory parameter"),
            (r#"{"api": "drop_everything"}"#, "drop_everything"),
        ] {
            let error = Command::parse(text.as_bytes()).expect_err(text);
            assert!(error.message().contains(want), "{text}: {}", error.message());
        }
        let bare = Command::parse(br#"{"api": "pull_latest_from_table_or_query"}"#).expect("command");
        assert!(bare.pull(true).expect_err("nothing").message().contains("start_date"));
    }

    #[test]
    fn reads_a_source_in_protobufs_json() {
        let text = serde_json::json!({"api": "validate_data_source", "data_source_proto": serde_json::json!({
            "type": "BATCH_FILE", "name": "s", "timestampField": "ts", "fileOptions": {"uri": "data/x.parquet"},
            "fieldMapping": {"a": "b"}, "meta": {"createdTimestamp": "2026-01-01T00:00:00Z"}}).to_string()});
        let source = Command::parse(text.to_string().as_bytes()).expect("command").data_source().expect("source");
        assert_eq!((source.name.as_str(), source.timestamp_field.as_str()), ("s", "ts"));
        assert!(matches!(source.options, Some(Options::FileOptions(o)) if o.uri == "data/x.parquet"));
    }
}
