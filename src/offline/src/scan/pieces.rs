//! Parquet files cut into pieces of row groups that are read on their own, at the same time. A piece's rows are behind
//! those of the pieces before it. What is read is what filters leave of row groups and pages, and not filtered again
//! where the reader does that itself.

use std::sync::{Arc, OnceLock};

use arrow::datatypes::SchemaRef;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::DFSchema;
use datafusion::datasource::TableType;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::FileGroup;
use datafusion::error::Result as EngineResult;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown};
use datafusion::physical_plan::ExecutionPlan;
use parquet::file::metadata::{ParquetMetaData, RowGroupMetaData};

use super::{ParquetFiles, bare};

/// Files are cut into about so many pieces, so that those who read them end together.
const PIECES: u64 = 32;

/// Files as a table whose partitions are pieces.
#[derive(Debug)]
pub(crate) struct Pieces {
    files: Arc<ParquetFiles>,
    /// Whether rows that filters leave out may come all the same.
    loose: bool,
    /// Rows that are not worth a piece of their own.
    few: u64,
    /// What rows fulfil whose other columns are decoded at all; of loose pieces only.
    located: Option<Expr>,
    /// The names of each piece's files.
    names: OnceLock<Vec<Vec<String>>>,
}

/// A row group of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Group {
    /// Where it begins in the file, as DataFusion tells it.
    begin: i64,
    rows: u64,
    /// What it takes in the file.
    bytes: u64,
}

impl Group {
    pub(super) fn rows(&self) -> u64 {
        self.rows
    }
}

impl Pieces {
    /// The pieces of files, of more than `few` rows each; `loose` pieces are not filtered row by row but for what is
    /// `located`.
    pub(crate) fn new(files: Arc<ParquetFiles>, loose: bool, few: u64, located: Option<Expr>) -> Self {
        Self { files, loose, few, located, names: OnceLock::new() }
    }

    /// How many rows the files have.
    pub(crate) fn rows(&self) -> usize {
        self.files.rows()
    }

    /// The files that a piece of the plan is in.
    pub(crate) fn names(&self, piece: usize) -> String {
        self.names.get().and_then(|names| names.get(piece)).map_or_else(String::new, |names| names.join(" or "))
    }

    /// The bytes of the largest row group, as it is in its file: so much a reader of a piece holds.
    pub(crate) fn largest(&self) -> usize {
        let groups = self.files.handles.files.values().flat_map(|opened| &opened.groups);
        usize::try_from(groups.map(|group| group.bytes).max().unwrap_or_default()).unwrap_or(usize::MAX)
    }

    fn cut(&self, files: Vec<PartitionedFile>) -> Vec<FileGroup> {
        let groups = |file: &PartitionedFile| -> &[Group] {
            self.files.handles.files.get(file.object_meta.location.as_ref()).map_or(&[], |opened| &opened.groups)
        };
        let rows = |groups: &[Group]| groups.iter().map(|group| group.rows).sum::<u64>();
        let enough = self.few.max(files.iter().map(|file| rows(groups(file))).sum::<u64>() / PIECES);
        let (mut pieces, mut piece, mut in_piece) = (Vec::new(), Vec::new(), 0);
        for file in files {
            let groups = groups(&file);
            // Where row groups do not stand one behind the other they cannot be told by where they begin.
            if !groups.is_sorted() || rows(groups) <= enough {
                in_piece += rows(groups);
                piece.push(file);
            } else {
                let mut start = 0;
                for (at, group) in groups.iter().enumerate() {
                    in_piece += group.rows;
                    let end = groups.get(at + 1).map_or(i64::MAX, |next| next.begin);
                    if in_piece >= enough || end == i64::MAX {
                        piece.push(file.clone().with_range(start, end));
                        start = end;
                    }
                    if in_piece >= enough {
                        pieces.push(std::mem::take(&mut piece));
                        in_piece = 0;
                    }
                }
            }
            if in_piece >= enough {
                pieces.push(std::mem::take(&mut piece));
                in_piece = 0;
            }
        }
        if !piece.is_empty() || pieces.is_empty() {
            pieces.push(piece);
        }
        pieces.into_iter().map(FileGroup::new).collect()
    }

    fn names_of(&self, group: &FileGroup) -> Vec<String> {
        let opened = &self.files.handles.files;
        group.iter().filter_map(|f| Some(opened.get(f.object_meta.location.as_ref())?.name.clone())).collect()
    }
}

#[tonic::async_trait]
impl TableProvider for Pieces {
    fn schema(&self) -> SchemaRef {
        self.files.schema()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> EngineResult<Vec<TableProviderFilterPushDown>> {
        let loose = || vec![TableProviderFilterPushDown::Exact; filters.len()];
        if self.loose { Ok(loose()) } else { self.files.supports_filters_pushdown(filters) }
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> EngineResult<Arc<dyn ExecutionPlan>> {
        let mut source = self.files.source();
        if self.loose
            && let Some(filter) = self.located.iter().chain(filters).cloned().reduce(Expr::and)
        {
            // There is no filter above the scan that the optimizer could hand down.
            let schema = DFSchema::try_from(self.schema())?;
            let filter = state.create_physical_expr(bare(filter)?, &schema)?;
            // Filters run row by row in their order: behind the first there is not much to do.
            source = source.with_predicate(filter).with_pushdown_filters(self.located.is_some());
        }
        let groups = self.cut(self.files.matching(state, filters)?);
        self.names.get_or_init(|| groups.iter().map(|group| self.names_of(group)).collect());
        ParquetFiles::plan(source, groups, projection, limit)
    }
}

/// The row groups that a footer tells of.
pub(super) fn groups(footer: &ParquetMetaData) -> Vec<Group> {
    let groups = footer.row_groups().iter().filter(|group| group.num_columns() > 0);
    let group = |group: &RowGroupMetaData| Group {
        begin: group.column(0).dictionary_page_offset().unwrap_or_else(|| group.column(0).data_page_offset()),
        rows: group.num_rows().unsigned_abs(),
        bytes: group.compressed_size().unsigned_abs(),
    };
    groups.map(group).collect()
}
