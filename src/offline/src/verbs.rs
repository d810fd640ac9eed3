//! One function per verb of the offline server, in terms of the registry, sources and frames. Knows
//! commands but no Flight.

use std::sync::Arc;

use arrow::array::RecordBatch;
use futures::{StreamExt, stream};
use model::ports::ObjectKind;
use model::registry::{Project, Registry, View};
use model::{Error, Kind, Result};
use prost::Message as _;
use proto::feast::core::data_source::{FileOptions, Options};
use proto::feast::core::logging_config::Destination;
use proto::feast::core::saved_dataset_storage::Kind as Kept;
use proto::feast::core::{DataSource, SavedDataset};

use crate::append::partitions;

use crate::frame::Frame;
use crate::history::{Export, ready, retrieve};
use crate::plan::{HistoricalRequest, resolve};
use crate::pull::{columns_and_types, pull};
use crate::request::{Api, Command};
use crate::source::Location;
use crate::span::entity_rows;
use crate::{Offline, append, error, metrics};

/// Where the entity rows of a historical request come from.
pub(crate) enum Entities {
    /// Uploaded.
    Frame(Frame),
    /// From a SELECT over the project's sources.
    Sql(String),
    /// Every key with a row in a span of µs, at its end.
    Span(Option<i64>, i64),
}

impl Offline {
    /// An empty frame, counted against the memory limit; what it has no room for goes to disk.
    pub(crate) fn frame(&self, schema: arrow::datatypes::SchemaRef) -> Frame {
        Frame::new(schema, self.engine.reservation("entity frame"), Some(self.engine.room()))
    }

    /// An empty table to be written, which must fit into memory.
    pub(crate) fn table(&self, schema: arrow::datatypes::SchemaRef) -> Frame {
        Frame::new(schema, self.engine.reservation("uploaded rows"), None)
    }

    /// `get_historical_features`.
    ///
    /// Errors: those of resolving the request, of the sources, and of the entity frame's columns.
    pub(crate) async fn historical(&self, request: &HistoricalRequest, entities: Entities) -> Result<Export> {
        let registry = (self.registry)();
        let resolved = resolve(&registry, request)?;
        let mut parts = Vec::new();
        for part in resolved.parts {
            parts.push(ready(&self.engine, part, request.known).await?);
        }
        let frame = match entities {
            Entities::Frame(frame) => frame,
            Entities::Span(from, to) => entity_rows(&self.engine, &parts, from, to).await?,
            Entities::Sql(text) => self.entity_sql(&registry, &request.project, &text).await?,
        };
        let Some(computed) = resolved.computed else {
            return retrieve(self.engine.clone(), frame, parts, self.settings.batch_rows);
        };
        computed.expect(frame.schema())?;
        let frame_columns = frame.schema().fields().len();
        let joined = retrieve(self.engine.clone(), frame, parts, self.settings.batch_rows)?;
        computed.behind(joined, frame_columns, self.transformer.clone())
    }

    async fn entity_sql(&self, registry: &Registry, project: &str, text: &str) -> Result<Frame> {
        let project = registry.project(project)?;
        let batch = |v: &Arc<View>| v.batch_source.clone().map(|s| (v.name.clone(), s));
        let nested = project.views.values().filter_map(|v| v.batch_source.as_ref());
        let sources = project
            .data_sources
            .values()
            .chain(nested)
            .map(|s| (s.name.clone(), s.clone()))
            .chain(project.views.values().filter_map(batch))
            .collect();
        let query = self.engine.sql(text, sources).await?;
        let schema = Arc::new(query.schema().as_arrow().clone());
        let rows = query.execute_stream().await.map_err(error::sql)?;
        let mut frame = self.frame(schema).behind(rows.map(|batch| batch.map_err(error::sql)).boxed());
        frame.fill(1).await?;
        if frame.is_empty() {
            return Err(Error::of_class(
                Kind::InvalidArgument,
                "EntitySQLEmptyResults",
                format!(
                    "No entity values found from the specified SQL query to generate the entity dataframe: {text}."
                ),
            ));
        }
        Ok(frame)
    }

    /// Any verb that gives a table.
    pub(crate) async fn read(&self, command: &Command, uploaded: Option<Frame>) -> Result<Export> {
        match command.api {
            Api::Historical => {
                let request = match command.whole_service() {
                    None => command.historical()?,
                    Some(service) => {
                        let (project, full) = (command.historical_project()?, command.full_feature_names());
                        let request = HistoricalRequest::of_service(&(self.registry)(), project, service, full)?;
                        HistoricalRequest { known: command.known(), ..request }
                    }
                };
                let entities = match (uploaded.filter(|f| !f.is_placeholder()), command.entity_sql()) {
                    (Some(frame), _) => Entities::Frame(frame),
                    (None, Some(text)) => Entities::Sql(text.to_owned()),
                    (None, None) => {
                        let (from, to) = command.span()?;
                        let to = to.unwrap_or_else(|| self.clock.now());
                        Entities::Span(from.map(model::Timestamp::micros), to.micros())
                    }
                };
                self.historical(&request, entities).await
            }
            Api::PullLatest | Api::PullAll => {
                let wanted = command.pull(command.api == Api::PullLatest)?;
                let (name, project) = (command.data_source_name()?, command.project());
                let kept = |missing: Error| self.saved_dataset(name, project).ok_or(missing);
                let source = self.source(name, project).or_else(kept)?;
                pull(&self.engine, &source, wanted).await
            }
            Api::Columns => {
                let table = self.engine.open(&Arc::new(command.data_source()?)).await?;
                let batch = columns_and_types(&table.schema)?;
                Ok(Export { schema: batch.schema(), batches: stream::iter([Ok(batch)]).boxed() })
            }
            _ => Err(Error::new(Kind::Unsupported, format!("Unknown read API: {}", command.api.as_str()))),
        }
    }

    /// Any verb that writes, with the table that came along.
    pub(crate) async fn write(&self, command: &Command, uploaded: Frame) -> Result<()> {
        match command.api {
            Api::WriteBatch => {
                let view = self.view(command.one_view()?, command.project())?;
                let source = view.batch_source.clone().ok_or_else(|| {
                    Error::invalid(format!("Feature view '{}' has no batch_source to append to", view.name))
                })?;
                append::batches(&self.writer(), source, uploaded.batches()?.collect::<Result<_>>()?).await?;
                Ok(())
            }
            Api::WriteLogged => self.write_logged(command.feature_service()?, command.project(), &uploaded).await,
            Api::Persist => {
                let (retrieval, overwrite) = command.persisted()?;
                let target = self.source(command.data_source_name()?, command.project())?;
                let Some(Options::FileOptions(file)) = &target.options else {
                    return Err(Error::new(Kind::Unsupported, format!("data source '{}' is no file", target.name)));
                };
                let location = Location::of(&target, self.engine.repo(), self.engine.stores())?;
                let export = self.read(&retrieval, Some(uploaded)).await?;
                let rows = append::export(&self.locks, &location, &file.uri, overwrite, export).await?;
                metrics::exported(rows);
                Ok(())
            }
            Api::Validate => {
                // As in Feast: what is wrong with a source is told, and stops nobody from applying it.
                let source = Arc::new(command.data_source()?);
                if let Err(error) = self.validate(&source).await {
                    tracing::warn!(source = source.name, "the data source cannot be read as it is: {error}");
                }
                Ok(())
            }
            _ => Err(Error::new(Kind::Unsupported, format!("Unknown write API: {}", command.api.as_str()))),
        }
    }

    async fn validate(&self, source: &Arc<DataSource>) -> Result<()> {
        let table = self.engine.open(source).await?;
        crate::source::time_column(source, &table.schema, &source.timestamp_field)?;
        Ok(())
    }

    async fn write_logged(&self, name: &str, project: Option<&str>, uploaded: &Frame) -> Result<()> {
        let service = self.find(
            project,
            "Feature service",
            name,
            |p| p.feature_services.get(name),
            |project| Error::feature_service_not_found(name, project),
        )?;
        let destination = service
            .spec
            .as_ref()
            .and_then(|s| s.logging_config.as_ref())
            .and_then(|l| l.destination.as_ref())
            .ok_or_else(|| Error::invalid("feature service must have logging_config set"))?;
        let Destination::FileDestination(file) = destination else {
            return Err(Error::new(
                Kind::Unsupported,
                format!("feature service {name} logs to something other than a FileLoggingDestination"),
            ));
        };
        let (endpoint, repo) = (&file.s3_endpoint_override, self.engine.repo());
        let directory = match Location::of_uri(&file.path, endpoint, repo, self.engine.stores())? {
            Location::Object(bucket, key) => Location::Object(bucket, format!("{}/", key.trim_end_matches('/'))),
            local => Location::Directory(local.path()),
        };
        let batches = uploaded.batches()?.collect::<Result<Vec<RecordBatch>>>()?;
        if file.partition_by.is_empty() {
            append::new_file(directory, name.to_owned(), batches).await?;
            return Ok(());
        }
        for (folder, batches) in partitions::split(&batches, &file.partition_by)? {
            let below = match &directory {
                Location::Object(bucket, key) => Location::Object(bucket.clone(), format!("{key}{folder}/")),
                local => Location::Directory(local.path().join(folder)),
            };
            append::new_file(below, name.to_owned(), batches).await?;
        }
        Ok(())
    }

    fn source(&self, name: &str, project: Option<&str>) -> Result<Arc<DataSource>> {
        self.find(
            project,
            "Data source",
            name,
            |p| p.data_sources.get(name),
            |project| Error::data_source_not_found(name, project),
        )
    }

    /// The file of a registered saved dataset, which the SDK calls by its path (`SavedDatasetFileStorage.to_data_source`).
    fn saved_dataset(&self, path: &str, project: Option<&str>) -> Option<Arc<DataSource>> {
        let registry = (self.registry)();
        let wanted = project.or(self.settings.default_project.as_deref());
        let projects = registry.projects.iter().filter(|(name, _)| wanted.is_none_or(|wanted| wanted == *name));
        let objects = projects.flat_map(|(_, p)| &p.objects).filter(|((kind, _), _)| *kind == ObjectKind::SavedDataset);
        let files = objects.filter_map(|(_, object)| {
            let storage = SavedDataset::decode(object.bytes.clone()).ok()?.spec?.storage?;
            match storage.kind? {
                Kept::FileStorage(file) => Some(file),
                _ => None,
            }
        });
        let source = |file: FileOptions| DataSource {
            name: path.to_owned(),
            options: Some(Options::FileOptions(file)),
            ..DataSource::default()
        };
        files.into_iter().find(|file| file.uri == path).map(source).map(Arc::new)
    }

    fn view(&self, name: &str, project: Option<&str>) -> Result<Arc<View>> {
        self.find(
            project,
            "Feature view",
            name,
            |p| p.views.get(name),
            |project| Error::feature_view_not_found(name, project),
        )
    }

    /// An object by name: in the project named, else in the default one, else in the only one that
    /// has it.
    fn find<T>(
        &self,
        project: Option<&str>,
        what: &str,
        name: &str,
        get: impl Fn(&Project) -> Option<&Arc<T>>,
        missing: impl Fn(&str) -> Error,
    ) -> Result<Arc<T>> {
        let registry = (self.registry)();
        if let Some(project) = project {
            return get(registry.project(project)?).cloned().ok_or_else(|| missing(project));
        }
        if let Some(project) = self.settings.default_project.as_deref()
            && let Some(found) = registry.projects.get(project).and_then(&get)
        {
            return Ok(found.clone());
        }
        let having: Vec<(&String, &Arc<T>)> =
            registry.projects.iter().filter_map(|(project, p)| get(p).map(|found| (project, found))).collect();
        match having.as_slice() {
            [(_, found)] => Ok((*found).clone()),
            [] => Err(missing(self.settings.default_project.as_deref().unwrap_or("(any)"))),
            several => {
                let names: Vec<&str> = several.iter().map(|(project, _)| project.as_str()).collect();
                Err(Error::new(
                    Kind::Conflict,
                    format!(
                        "{what} {name} exists in the projects {}, and the request names none: set the server's project",
                        names.join(", ")
                    ),
                ))
            }
        }
    }
}
