//! The event log: the events of each view's stream as Parquet, by event date. A file is there whole or not at all, and its name
//! says which events of a partition it has: what comes again after a crash is known by that and left out. Small files
//! are merged into greater ones. Knows no stream's client and no checkpoint.

mod names;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int32Array, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use model::ports::{BoxFuture, EventAppender, EventLog, LogOf, LoggedEvent};
use model::registry::View;
use model::value::NULL;
use model::{Error, Kind, Result, Timestamp, Value, ValueType};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use tokio::sync::RwLock;

use crate::append::local::{Part, remove_stale};
use crate::convert::{arrow_type, from_values, timestamps, utc_micros};
use crate::engine::blocking;
use crate::error::{arrow as arrow_error, damaged, io};
use crate::metrics;
use crate::scan::ParquetFiles;
use crate::source::listing::{At, Found, Listing};
use names::Segment;

/// So many files beside each other become one.
const MERGED: usize = if cfg!(test) { 4 } else { 32 };
/// What is merged: files below each of these sizes with their like, bytes.
const TIERS: [u64; 2] = [1 << 20, 32 << 20];
/// Where an event came from, and when it was accepted.
const PARTITION: &str = "__partition";
const OFFSET: &str = "__offset";
/// Microseconds.
const DAY: i64 = 86_400_000_000;
/// Whether a row of a view's history is from its log (1) or from its source (0).
pub(crate) const LOGGED: &str = "__logged";
/// When an event was accepted.
pub(crate) const ARRIVED: &str = "__arrived";

/// The logs of all views, below one directory.
#[derive(Clone, Debug)]
pub(crate) struct Log {
    root: PathBuf,
    /// Held to read while files are listed and opened, to write while such are removed that were merged.
    pub(crate) merging: Arc<RwLock<()>>,
}

impl Log {
    pub(crate) fn new(root: PathBuf) -> Self {
        Self { root, merging: Arc::default() }
    }

    fn folder(&self, view: &View, topic: &str) -> PathBuf {
        let plain = |name: &str| crate::append::partitions::segment(name);
        self.root.join(plain(&view.project)).join(plain(&view.name)).join(plain(topic))
    }

    /// The files of a view's log, in the order of arrival of each partition and date. Blocks.
    pub(crate) fn files(&self, view: &View) -> Result<Vec<At>> {
        let Some(stream) = view.stream_source.as_deref().and_then(model::schema::kafka) else { return Ok(Vec::new()) };
        let (kept, _) = names::list(&names::folders(&self.folder(view, &stream.topic))?)?;
        Ok(kept.iter().map(|segment| At::Local(segment.path())).collect())
    }

    /// The files of a view's log, open; `None` where it has none yet.
    ///
    /// Errors: a file that cannot be read.
    pub(crate) async fn open_files(&self, view: &View) -> Result<Option<Arc<ParquetFiles>>> {
        // Files that were listed stay until they are open.
        let _unmerged = self.merging.read().await;
        let files = self.files(view)?.into_iter().map(|at| Found::whole(at, Vec::new()));
        let listing = Listing { files: files.collect(), ..Listing::default() };
        if listing.files.is_empty() {
            return Ok(None);
        }
        Ok(Some(Arc::new(ParquetFiles::open(listing).await?)))
    }
}

/// What a column of a view is named in its log: as in its batch source.
pub(crate) fn name_in_log(view: &View, name: &str) -> String {
    let source = view.batch_source.as_deref();
    let named = |name: Option<&String>| name.filter(|name| !name.is_empty()).cloned();
    if name == view.event_time_column() {
        return named(source.map(|s| &s.timestamp_field)).unwrap_or_else(|| name.to_owned());
    }
    let mapped = source.and_then(|s| s.field_mapping.iter().find(|(_, to)| *to == name));
    mapped.map_or_else(|| name.to_owned(), |(from, _)| from.clone())
}

impl EventLog for Log {
    fn open<'a>(&'a self, of: LogOf<'a>, next: BTreeMap<i32, i64>) -> BoxFuture<'a, Result<Box<dyn EventAppender>>> {
        let files = Files::of(self, of);
        Box::pin(async move {
            let (files, ends) = blocking(move || {
                let ends = files.settle(&next)?;
                Ok((files, ends))
            })
            .await?;
            Ok(Box::new(Appender { files: Arc::new(files), counted: ends.clone(), ends, touched: BTreeSet::new() })
                as Box<dyn EventAppender>)
        })
    }
}

/// By partition: the epoch, and the last offset in it.
type Ends = BTreeMap<i32, (u32, i64)>;

struct Appender {
    files: Arc<Files>,
    ends: Ends,
    /// The same, of what has stored positions behind it.
    counted: Ends,
    /// The folders that were written to since the last merge.
    touched: BTreeSet<PathBuf>,
}

impl EventAppender for Appender {
    fn append(&mut self, events: Arc<Vec<LoggedEvent>>) -> BoxFuture<'_, Result<u64>> {
        Box::pin(async move {
            let (files, mut ends) = (Arc::clone(&self.files), self.ends.clone());
            let (counted, touched) = (self.counted.clone(), std::mem::take(&mut self.touched));
            let (ends, segments) = blocking(move || {
                files.merge(touched, &counted)?;
                let segments = files.write(&mut ends, &events)?;
                Ok((ends, segments))
            })
            .await?;
            self.ends = ends;
            let written = segments.iter().map(|(_, events)| events).sum();
            self.touched.extend(segments.into_iter().map(|(segment, _)| segment.folder));
            metrics::logged(&self.files.view, written);
            Ok(written)
        })
    }

    fn counted(&mut self) {
        self.counted.clone_from(&self.ends);
    }

    fn begin_anew(&mut self, partition: i32) {
        if let Some(end) = self.ends.get_mut(&partition) {
            *end = (end.0 + 1, -1);
        }
    }
}

/// The columns that values go to, in the events' order of keys and values, with their names in the files; then the whole
/// schema: those, the times, and where each event came from.
fn layout(view: &View, columns: &[(String, ValueType)]) -> (Vec<Written>, SchemaRef) {
    let source = view.batch_source.as_deref();
    // By the batch source's names: the field mapping backwards.
    let file_name = |name: &str| {
        let mapped = source.and_then(|s| s.field_mapping.iter().find(|(_, to)| *to == name));
        mapped.map_or_else(|| name.to_owned(), |(from, _)| from.clone())
    };
    let named = |name: Option<&String>| name.filter(|name| !name.is_empty()).cloned();
    let time = named(source.map(|s| &s.timestamp_field)).unwrap_or_else(|| view.event_time_column().to_owned());
    let created = named(source.map(|s| &s.created_timestamp_column));
    let mut written: Vec<Written> = Vec::new();
    let keys = view.join_keys.iter().filter(|_| !view.is_entityless());
    let keys = keys.map(|key| (From::Key(key.name.clone()), &key.name, key.value_type));
    let values = columns.iter().enumerate().map(|(at, (name, value_type))| (From::Value(at), name, *value_type));
    for (from, name, value_type) in keys.chain(values) {
        let name = file_name(name);
        // A column of the message may be the key, a time or where it came from, which stand there already.
        let ours = [PARTITION, OFFSET, ARRIVED, LOGGED].contains(&name.as_str());
        if !ours && name != time && Some(&name) != created.as_ref() && written.iter().all(|w| w.name != name) {
            written.push(Written { from, name, data_type: arrow_type(value_type, None) });
        }
    }
    let mut fields: Vec<Field> = written.iter().map(|w| Field::new(&w.name, w.data_type.clone(), true)).collect();
    fields.push(Field::new(time, utc_micros(), false));
    fields.extend(created.map(|created| Field::new(created, utc_micros(), true)));
    fields.push(Field::new(PARTITION, DataType::Int32, false));
    fields.push(Field::new(OFFSET, DataType::Int64, false));
    fields.push(Field::new(ARRIVED, utc_micros(), false));
    (written, Arc::new(Schema::new(fields)))
}

/// A column of the files.
struct Written {
    from: From,
    name: String,
    data_type: DataType,
}

/// Where a column's values stand in an event.
enum From {
    Key(String),
    Value(usize),
}

/// One view's log. Its methods block.
struct Files {
    view: String,
    folder: PathBuf,
    columns: Vec<Written>,
    schema: SchemaRef,
    has_created: bool,
    merging: Arc<RwLock<()>>,
}

impl Files {
    fn of(log: &Log, of: LogOf<'_>) -> Self {
        let (columns, schema) = layout(of.view, of.columns);
        Self {
            view: of.view.name.clone(),
            folder: log.folder(of.view, of.topic),
            has_created: schema.fields().len() > columns.len() + 4,
            columns,
            schema,
            merging: Arc::clone(&log.merging),
        }
    }

    /// Removes what a crash left behind and what is not counted; gives where the log ends.
    fn settle(&self, next: &BTreeMap<i32, i64>) -> Result<Ends> {
        let folders = names::folders(&self.folder)?;
        for folder in &folders {
            remove_stale(folder);
        }
        let (kept, spent) = names::list(&folders)?;
        remove(&spent)?;
        let mut ends = Ends::new();
        for segment in &kept {
            let end = ends.entry(segment.partition).or_insert((segment.epoch, -1));
            end.0 = end.0.max(segment.epoch);
        }
        let newest = |s: &Segment| ends.get(&s.partition).is_some_and(|end| end.0 == s.epoch);
        // A file that reaches beyond was merged, so all up to its end counted once, for a reader that was further.
        let mut next = next.clone();
        let mut ordered: Vec<&Segment> = kept.iter().filter(|s| newest(s)).collect();
        ordered.sort_by_key(|s| s.first);
        for segment in ordered {
            if let Some(next) = next.get_mut(&segment.partition).filter(|next| segment.first < **next) {
                *next = (*next).max(segment.last + 1);
            }
        }
        let uncounted = |s: &Segment| next.get(&s.partition).is_some_and(|next| s.first >= *next);
        let (gone, kept): (Vec<Segment>, Vec<Segment>) = kept.into_iter().partition(|s| newest(s) && uncounted(s));
        remove(&gone)?;
        for segment in &kept {
            if let Some(end) = ends.get_mut(&segment.partition).filter(|end| end.0 == segment.epoch) {
                end.1 = end.1.max(segment.last);
            }
        }
        if let Some(last) = kept.last() {
            self.check(last)?;
        }
        Ok(ends)
    }

    /// Errors: `Conflict` where a file has other columns.
    fn check(&self, segment: &Segment) -> Result<()> {
        let path = segment.path();
        let file = File::open(&path).map_err(|e| io("opening", &path, e))?;
        let builder = ParquetRecordBatchReaderBuilder::try_new(file);
        let there = builder.map_err(|e| damaged(&path.display().to_string(), &e))?.schema().clone();
        if there.fields() == self.schema.fields() {
            return Ok(());
        }
        let names = |schema: &SchemaRef| {
            let fields = schema.fields().iter().map(|f| format!("{} {}", f.name(), f.data_type()));
            fields.collect::<Vec<_>>().join(", ")
        };
        Err(Error::new(
            Kind::Conflict,
            format!(
                "the event log of view {} at {} has the columns {}, and the view now takes {}: move the folder away",
                self.view,
                self.folder.display(),
                names(&there),
                names(&self.schema)
            ),
        ))
    }

    /// The files that were written, with the number of events in each.
    fn write(&self, ends: &mut Ends, events: &[LoggedEvent]) -> Result<Vec<(Segment, u64)>> {
        let mut parts: BTreeMap<(i64, i32), Vec<&LoggedEvent>> = BTreeMap::new();
        for event in events {
            let end = ends.entry(event.partition).or_insert((0, -1));
            if event.offset > end.1 {
                end.1 = event.offset;
                let day = event.version.event.micros().div_euclid(DAY);
                parts.entry((day, event.partition)).or_default().push(event);
            }
        }
        let mut written = Vec::new();
        for ((day, partition), events) in parts {
            let (Some(first), Some(last)) = (events.first(), events.last()) else { continue };
            let date = Timestamp(day * DAY).to_rfc3339();
            let folder = self.folder.join(format!("event_date={}", date.split('T').next().unwrap_or_default()));
            let epoch = ends.get(&partition).map_or(0, |end| end.0);
            let segment = Segment { partition, epoch, first: first.offset, last: last.offset, folder };
            let mut part = Part::begin(&segment.path(), &self.schema)?;
            part.write(&self.batch(&events)?)?;
            part.commit_over()?;
            written.push((segment, events.len() as u64));
        }
        Ok(written)
    }

    fn batch(&self, events: &[&LoggedEvent]) -> Result<RecordBatch> {
        let keys = events.iter().map(|event| event.key.decode()).collect::<Result<Vec<_>>>()?;
        let mut columns = self
            .columns
            .iter()
            .map(|column| {
                let values: Vec<Value> = match &column.from {
                    From::Key(name) => {
                        let of = |key: &Vec<(String, Value)>| {
                            key.iter().find(|(n, _)| n == name).map_or(NULL, |(_, value)| value.clone())
                        };
                        keys.iter().map(of).collect()
                    }
                    From::Value(at) => events.iter().map(|e| e.values.get(*at).cloned().unwrap_or(NULL)).collect(),
                };
                from_values(&values, &column.data_type)
            })
            .collect::<Result<Vec<ArrayRef>>>()?;
        let times = |of: &dyn Fn(&LoggedEvent) -> Option<i64>| {
            timestamps(events.iter().map(|e| of(e)).collect::<Int64Array>(), &utc_micros())
        };
        columns.push(times(&|e| Some(e.version.event.micros())));
        if self.has_created {
            columns.push(times(&|e| Some(e.version.created.micros()).filter(|created| *created != 0)));
        }
        columns.push(Arc::new(events.iter().map(|e| e.partition).collect::<Int32Array>()));
        columns.push(Arc::new(events.iter().map(|e| e.offset).collect::<Int64Array>()));
        columns.push(times(&|e| Some(e.arrived.micros())));
        RecordBatch::try_new(Arc::clone(&self.schema), columns).map_err(arrow_error)
    }

    /// Makes one file of many small ones that follow each other. What is not counted stays as it is: it may have to go,
    /// with all that was appended together with it.
    fn merge(&self, folders: BTreeSet<PathBuf>, counted: &Ends) -> Result<()> {
        let (mut kept, _) = names::list(&Vec::from_iter(folders))?;
        kept.retain(|s| counted.get(&s.partition).is_some_and(|end| (s.epoch, s.last) <= *end));
        let of = |s: &Segment| (s.folder.clone(), s.partition, s.epoch);
        for run in kept.chunk_by(|a, b| of(a) == of(b)).filter(|run| run.len() >= MERGED) {
            for tier in TIERS {
                let small = |s: &&&Segment| std::fs::metadata(s.path()).is_ok_and(|m| m.len() < tier);
                let count = run.iter().rev().collect::<Vec<_>>().iter().take_while(|s| small(s)).count();
                if count >= MERGED {
                    self.unite(&run[run.len() - count..])?;
                    break;
                }
            }
        }
        Ok(())
    }

    fn unite(&self, segments: &[Segment]) -> Result<()> {
        let (Some(first), Some(last)) = (segments.first(), segments.last()) else { return Ok(()) };
        let whole = Segment { last: last.last, ..first.clone() };
        let mut part = Part::begin(&whole.path(), &self.schema)?;
        for segment in segments {
            let path = segment.path();
            let bad = |e: &_| damaged(&path.display().to_string(), e);
            let file = File::open(&path).map_err(|e| io("opening", &path, e))?;
            let reader = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|e| bad(&e))?;
            for batch in reader.build().map_err(|e| bad(&e))? {
                part.write(&batch.map_err(arrow_error)?)?;
            }
        }
        part.commit_over()?;
        let _alone = self.merging.blocking_write();
        remove(segments)
    }
}

fn remove(segments: &[Segment]) -> Result<()> {
    for path in segments.iter().map(Segment::path) {
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(io("removing", &path, e)),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
