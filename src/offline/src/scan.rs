//! Parquet files as a DataFusion table: read in the order of their paths and rows, from handles that
//! are opened once, so that a file replaced in mid-query does not show. Knows no view.

use std::collections::HashMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use arrow::datatypes::{Schema, SchemaRef};
use datafusion::catalog::{Session, TableProvider};
use datafusion::datasource::TableType;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::object_store::ObjectStoreUrl;
use datafusion::datasource::physical_plan::{
    FileGroup, FileScanConfigBuilder, ParquetFileReaderFactory, ParquetSource,
};
use datafusion::datasource::source::DataSourceExec;
use datafusion::error::{DataFusionError, Result as EngineResult};
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use model::{Error, Result};
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions};
use parquet::arrow::async_reader::AsyncFileReader;

use crate::error::{io, parquet as parquet_error};

/// Some Parquet files with one schema.
#[derive(Debug)]
pub(crate) struct ParquetFiles {
    schema: SchemaRef,
    files: Vec<PartitionedFile>,
    handles: Arc<Handles>,
}

impl ParquetFiles {
    /// Opens the files and reads their footers; columns are the union over the files. Blocks.
    ///
    /// Errors: a file that is no Parquet; files whose columns contradict each other.
    pub(crate) fn open(paths: &[PathBuf]) -> Result<Self> {
        let mut schemas = Vec::with_capacity(paths.len());
        let mut files = Vec::with_capacity(paths.len());
        let mut handles = HashMap::with_capacity(paths.len());
        for (i, path) in paths.iter().enumerate() {
            let file = File::open(path).map_err(|e| io("opening", path, e))?;
            let size = file.metadata().map_err(|e| io("opening", path, e))?.len();
            let metadata = ArrowReaderMetadata::load(&file, ArrowReaderOptions::default())
                .map_err(|e| parquet_error("reading the footer of", path, e))?;
            schemas.push(metadata.schema().as_ref().clone());
            let name = format!("{i}.parquet");
            files.push(PartitionedFile::new(name.clone(), size));
            handles.insert(name, (path.clone(), file));
        }
        let metadata = schemas.first().map(|s| s.metadata().clone()).unwrap_or_default();
        let bare = schemas.into_iter().map(|s| s.with_metadata(HashMap::new()));
        let schema = Schema::try_merge(bare).map_err(|e| {
            let first = paths.first().map(|p| p.display().to_string()).unwrap_or_default();
            Error::invalid(format!("the Parquet files beside {first} have columns of different types: {e}"))
        })?;
        Ok(Self { schema: Arc::new(schema.with_metadata(metadata)), files, handles: Arc::new(Handles(handles)) })
    }
}

#[tonic::async_trait]
impl TableProvider for ParquetFiles {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
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
        _state: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        limit: Option<usize>,
    ) -> EngineResult<Arc<dyn ExecutionPlan>> {
        let source = ParquetSource::new(self.schema.clone())
            .with_parquet_file_reader_factory(self.handles.clone())
            .with_enable_page_index(true);
        let config = FileScanConfigBuilder::new(ObjectStoreUrl::local_filesystem(), Arc::new(source))
            .with_file_group(FileGroup::new(self.files.clone()))
            .with_projection_indices(projection.cloned())?
            .with_limit(limit)
            .with_preserve_order(true)
            .build();
        Ok(DataSourceExec::from_data_source(config))
    }
}

/// The open files by the names that the plan knows them by.
#[derive(Debug)]
struct Handles(HashMap<String, (PathBuf, File)>);

impl ParquetFileReaderFactory for Handles {
    fn create_reader(
        &self,
        _partition: usize,
        file: PartitionedFile,
        _metadata_size_hint: Option<usize>,
        _metrics: &ExecutionPlanMetricsSet,
    ) -> EngineResult<Box<dyn AsyncFileReader + Send>> {
        let name = file.object_meta.location.as_ref();
        let (_, file) = self
            .0
            .get(name)
            .ok_or_else(|| DataFusionError::Internal(format!("the file {name} is not among those opened")))?;
        Ok(Box::new(handle::Reader::new(file)?))
    }
}

mod handle;
