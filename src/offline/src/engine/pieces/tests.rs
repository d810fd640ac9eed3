//! A file's pieces stay pieces on their way through the planner.

use arrow::array::{ArrayRef, Int64Array, RecordBatch, TimestampMicrosecondArray};
use arrow::datatypes::{Field, TimeUnit};
use datafusion::logical_expr::lit;
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;
use proto::feast::core::{DataSource, data_source};

use super::*;
use crate::Settings;
use crate::engine::{Engine, Order};

const GROUPS: i64 = 5;
/// With 16 bytes each more than what the optimizer takes for a small file, which it leaves alone (10 MiB).
const ROWS: i64 = 200_000;

/// A file of as many row groups, keys and times without any repetition.
fn file(path: &std::path::Path) {
    let time = DataType::Timestamp(TimeUnit::Microsecond, None);
    let fields = vec![Field::new("id", DataType::Int64, false), Field::new("ts", time, false)];
    let schema = Arc::new(Schema::new(fields));
    let properties = WriterProperties::builder()
        .set_compression(Compression::UNCOMPRESSED)
        .set_dictionary_enabled(false)
        .set_max_row_group_row_count(Some(ROWS as usize));
    let out = std::fs::File::create(path).expect("a file");
    let mut writer = ArrowWriter::try_new(out, schema.clone(), Some(properties.build())).expect("a writer");
    for group in 0..GROUPS {
        let numbers = || (group * ROWS..(group + 1) * ROWS).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a));
        let columns: Vec<ArrayRef> = vec![
            Arc::new(Int64Array::from_iter_values(numbers())),
            Arc::new(TimestampMicrosecondArray::from_iter_values(numbers())),
        ];
        writer.write(&RecordBatch::try_new(schema.clone(), columns).expect("a batch")).expect("written");
    }
    writer.close().expect("a footer");
}

#[tokio::test]
async fn row_groups_of_one_file_are_read_at_the_same_time() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("history.parquet");
    file(&path);
    let settings = Settings { repo_dir: dir.path().into(), spill_dir: dir.path().join("spill"), ..Settings::default() };
    let engine = Engine::new(&settings).expect("an engine");
    let options = data_source::FileOptions { uri: path.display().to_string(), ..Default::default() };
    let source = DataSource {
        name: "history".into(),
        timestamp_field: "ts".into(),
        options: Some(data_source::Options::FileOptions(options)),
        ..Default::default()
    };
    let table = engine.open(&Arc::new(source)).await.expect("opens");
    let cut = Cut { keys: vec![("id".into(), KeyType::Int)], time: "ts".into(), only_keyed: true, ..Cut::default() };
    let pieces = engine.in_pieces(&table, &cut, lit(true)).await.expect("planned");
    assert_eq!(pieces.count(), GROUPS as usize);
    let mut rows = 0;
    for narrow in [false, true] {
        for piece in 0..pieces.count() {
            let mut stream = pieces.read(piece, narrow).expect("read");
            while let Some(batch) = futures::StreamExt::next(&mut stream).await {
                rows += batch.expect("a batch").num_rows() as i64;
            }
        }
    }
    assert_eq!(rows, 2 * GROUPS * ROWS, "each once");
    let sorted = engine.read(&table, &cut, Order::KeyTime).await;
    assert!(sorted.is_ok(), "and one behind the other where order counts");
}
