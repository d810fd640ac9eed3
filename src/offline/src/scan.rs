//! Parquet files as a DataFusion table: read in the order of their paths and rows, from handles that
//! are opened once (or objects as they were listed), so that a file replaced in mid-query does not show.
//! What the files' paths say of their rows are columns, too, and a file whose values cannot match is not
//! read; nor are rows that do not count. Knows no view.

mod deleted;
mod handle;
mod object;
mod pieces;
mod schemas;

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::{Array, RecordBatch, RecordBatchOptions};
use arrow::datatypes::{Schema, SchemaRef};
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::cast::as_boolean_array;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{DFSchema, ScalarValue};
use datafusion::datasource::TableType;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::object_store::ObjectStoreUrl;
use datafusion::datasource::physical_plan::{
    FileGroup, FileScanConfigBuilder, ParquetFileReaderFactory, ParquetSource,
};
use datafusion::datasource::source::DataSourceExec;
use datafusion::datasource::table_schema::TableSchema;
use datafusion::error::{DataFusionError, Result as EngineResult};
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use futures::{StreamExt, TryStreamExt, stream};
use model::{Error, Result};
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions};
use parquet::arrow::async_reader::AsyncFileReader;
use parquet::file::metadata::ParquetMetaData;

use crate::engine::blocking;
use crate::error::{arrow as arrow_error, damaged, io};
use crate::source::listing::{At, Found, Listing};

pub(crate) use pieces::Pieces;

/// How many objects' footers are fetched at a time.
const FETCHES: usize = 16;

/// Of so many local files the footers are kept until they are read; those of more are read again.
const FOOTERS: usize = 64;

/// Some Parquet files with one schema.
#[derive(Debug)]
pub(crate) struct ParquetFiles {
    schema: TableSchema,
    files: Vec<PartitionedFile>,
    /// The partition columns, a row for each file.
    partitions: RecordBatch,
    handles: Arc<Handles>,
}

impl ParquetFiles {
    /// Opens the files and reads their footers; columns are the union over the files.
    ///
    /// Errors: a file that is gone or no Parquet; files whose columns contradict each other.
    pub(crate) async fn open(listing: Listing) -> Result<Self> {
        let Listing { files: found, mut partitions, schema } = listing;
        let values: Vec<Vec<Option<String>>> = found.iter().map(|f| f.partition.clone()).collect();
        let few = found.len() <= FOOTERS;
        let opened = stream::iter(found).map(|found| Opened::open(found, few)).buffered(FETCHES);
        let opened: Vec<Opened> = opened.try_collect().await?;
        let in_files = if let Some(schema) = schema {
            schema
        } else {
            let schemas: Vec<(&str, &SchemaRef)> = opened.iter().map(|o| (o.name.as_str(), &o.schema)).collect();
            let merged = schemas::merge(&schemas)?;
            // A column that the paths and the files have is the paths', in the files' type.
            for partition in &mut partitions {
                if let Ok(field) = merged.field_with_name(partition.name()) {
                    *partition = Arc::new(partition.as_ref().clone().with_data_type(field.data_type().clone()));
                }
            }
            let own = merged.fields().iter().filter(|f| partitions.iter().all(|p| p.name() != f.name())).cloned();
            Arc::new(Schema::new_with_metadata(own.collect::<Vec<_>>(), merged.metadata().clone()))
        };
        let columns = schemas::partitions(&partitions, &values, |file| &opened[file].name)?;
        let mut files = Vec::with_capacity(opened.len());
        let mut handles = HashMap::with_capacity(opened.len());
        for (i, file) in opened.into_iter().enumerate() {
            let name = format!("{i}.parquet");
            let scalars = columns.iter().map(|c| ScalarValue::try_from_array(c, i)).collect::<EngineResult<_>>();
            let scalars: Vec<ScalarValue> = scalars.map_err(crate::error::engine)?;
            let mut planned = PartitionedFile::new(name.clone(), file.size).with_partition_values(scalars);
            if let Some(left) = &file.left {
                planned = planned.with_extension(left.selection());
            }
            files.push(planned);
            handles.insert(name, file);
        }
        let rows = RecordBatchOptions::new().with_row_count(Some(files.len()));
        let partition_schema = Arc::new(Schema::new(partitions.clone()));
        Ok(Self {
            schema: TableSchema::builder(in_files).with_table_partition_cols(partitions).build(),
            files,
            partitions: RecordBatch::try_new_with_options(partition_schema, columns, &rows).map_err(arrow_error)?,
            handles: Arc::new(Handles { files: handles, last: Mutex::default() }),
        })
    }

    /// How many rows the files have that count.
    pub(crate) fn rows(&self) -> usize {
        let all = self.handles.files.values().map(|opened| match &opened.left {
            Some(left) => left.rows(),
            None => opened.groups.iter().map(pieces::Group::rows).sum(),
        });
        usize::try_from(all.sum::<u64>()).unwrap_or(usize::MAX)
    }

    /// The files that were opened last: where a damage was found, it is in one of these.
    pub(crate) fn last_read(&self) -> Vec<String> {
        self.handles.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The files whose partition values may fulfil the filters.
    fn matching(&self, state: &dyn Session, filters: &[Expr]) -> EngineResult<Vec<PartitionedFile>> {
        let schema = DFSchema::try_from(self.partitions.schema())?;
        let mut wanted = vec![true; self.files.len()];
        let of_paths = |filter: &&Expr| {
            let columns = filter.column_refs();
            !columns.is_empty() && columns.iter().all(|c| schema.index_of_column_by_name(None, &c.name).is_some())
        };
        for filter in filters.iter().filter(of_paths) {
            let filter = state.create_physical_expr(bare(filter.clone())?, &schema)?;
            let answers = filter.evaluate(&self.partitions)?.into_array(self.files.len())?;
            let answers = as_boolean_array(&answers)?;
            for (i, wanted) in wanted.iter_mut().enumerate() {
                *wanted &= answers.is_valid(i) && answers.value(i);
            }
        }
        Ok(self.files.iter().zip(wanted).filter(|(_, wanted)| *wanted).map(|(f, _)| f.clone()).collect())
    }

    fn source(&self) -> ParquetSource {
        ParquetSource::new(self.schema.clone())
            .with_parquet_file_reader_factory(self.handles.clone())
            .with_enable_page_index(true)
    }

    /// Reads groups of files, each in its order.
    fn plan(
        source: ParquetSource,
        groups: Vec<FileGroup>,
        projection: Option<&Vec<usize>>,
        limit: Option<usize>,
    ) -> EngineResult<Arc<dyn ExecutionPlan>> {
        let config = FileScanConfigBuilder::new(ObjectStoreUrl::local_filesystem(), Arc::new(source))
            .with_file_groups(groups)
            .with_projection_indices(projection.cloned())?
            .with_limit(limit)
            .with_preserve_order(true)
            .build();
        Ok(DataSourceExec::from_data_source(config))
    }
}

#[tonic::async_trait]
impl TableProvider for ParquetFiles {
    fn schema(&self) -> SchemaRef {
        self.schema.table_schema().clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> EngineResult<Vec<TableProviderFilterPushDown>> {
        // The physical optimizer hands the filter to the Parquet source, which skips row groups and pages.
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> EngineResult<Arc<dyn ExecutionPlan>> {
        let files = vec![FileGroup::new(self.matching(state, filters)?)];
        Self::plan(self.source(), files, projection, limit)
    }
}

/// A filter whose columns are named without their table.
fn bare(filter: Expr) -> EngineResult<Expr> {
    let bare = filter.transform(|e| {
        Ok(match e {
            Expr::Column(mut column) => {
                column.relation = None;
                Transformed::yes(Expr::Column(column))
            }
            other => Transformed::no(other),
        })
    })?;
    Ok(bare.data)
}

/// A file that can be read.
#[derive(Debug)]
struct Opened {
    /// Its path or URL.
    name: String,
    size: u64,
    schema: SchemaRef,
    content: Content,
    groups: Vec<pieces::Group>,
    /// Of a file with rows that do not count: the others.
    left: Option<deleted::Left>,
}

#[derive(Debug)]
enum Content {
    /// With its footer, if that is kept.
    File(File, Option<Arc<ParquetMetaData>>),
    Object(object::Reader),
}

impl Opened {
    async fn open(found: Found, keep_footer: bool) -> Result<Self> {
        let Found { at, deleted, .. } = found;
        let mut opened = Self::at(at, keep_footer).await?;
        if let Some(deleted) = deleted {
            let rows = opened.groups.iter().map(pieces::Group::rows).sum();
            opened.left = Some(deleted::Left::of(&deleted, rows, &opened.name)?);
        }
        Ok(opened)
    }

    async fn at(at: At, keep_footer: bool) -> Result<Self> {
        let name = at.name();
        match at {
            At::Local(path) => blocking(move || Self::local(&path, name, keep_footer)).await,
            At::Object(bucket, meta) => {
                let size = meta.size;
                let reader = object::Reader::open(bucket, *meta).await?;
                let footer = reader.metadata();
                let groups = pieces::groups(&footer);
                let schema = ArrowReaderMetadata::try_new(footer, ArrowReaderOptions::default());
                let schema = schema.map_err(|e| damaged(&name, &e))?.schema().clone();
                Ok(Self { name, size, schema, content: Content::Object(reader), groups, left: None })
            }
        }
    }

    fn local(path: &Path, name: String, keep_footer: bool) -> Result<Self> {
        let gone = |e: std::io::Error| match e.kind() {
            std::io::ErrorKind::NotFound => Error::invalid(format!(
                "the file {name} is not there any more: it was removed in the meantime, or (of a Delta table) vacuumed"
            )),
            _ => io("opening", path, e),
        };
        let file = File::open(path).map_err(gone)?;
        let size = file.metadata().map_err(|e| io("opening", path, e))?.len();
        let metadata = ArrowReaderMetadata::load(&file, ArrowReaderOptions::default());
        let metadata = metadata.map_err(|e| damaged(&name, &e))?;
        let footer = metadata.metadata();
        let (schema, groups) = (metadata.schema().clone(), pieces::groups(footer));
        let footer = keep_footer.then(|| footer.clone());
        Ok(Self { name, size, schema, content: Content::File(file, footer), groups, left: None })
    }
}

/// The schema in a file's footer.
///
/// Errors: as [`ParquetFiles::open`].
pub(crate) async fn schema_of(found: Found) -> Result<SchemaRef> {
    Ok(Opened::open(found, false).await?.schema)
}

/// The open files by the names that the plan knows them by.
#[derive(Debug)]
struct Handles {
    files: HashMap<String, Opened>,
    /// The names of the last two that were read: the next one is opened while one is read.
    last: Mutex<Vec<String>>,
}

impl ParquetFileReaderFactory for Handles {
    fn create_reader(
        &self,
        _partition: usize,
        file: PartitionedFile,
        _metadata_size_hint: Option<usize>,
        _metrics: &ExecutionPlanMetricsSet,
    ) -> EngineResult<Box<dyn AsyncFileReader + Send>> {
        let name = file.object_meta.location.as_ref();
        let opened = self
            .files
            .get(name)
            .ok_or_else(|| DataFusionError::Internal(format!("the file {name} is not among those opened")))?;
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.last() != Some(&opened.name) {
            if last.len() == 2 {
                last.remove(0);
            }
            last.push(opened.name.clone());
        }
        Ok(match &opened.content {
            Content::File(file, footer) => Box::new(handle::Reader::new(file, footer.clone())?),
            Content::Object(reader) => Box::new(reader.clone()),
        })
    }
}
