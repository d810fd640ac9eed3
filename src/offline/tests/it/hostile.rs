//! Uploads that are not what they say: every one is the caller's error, and the server goes on.

use std::sync::Arc;

use arrow::array::{ArrayRef, DictionaryArray, Int64Array, ListArray, NullArray, RecordBatch};
use arrow::datatypes::{Int32Type, Int64Type};
use arrow::ipc::CompressionType;
use arrow::ipc::writer::IpcWriteOptions;
use arrow_flight::encode::{DictionaryHandling, FlightDataEncoderBuilder};
use arrow_flight::{FlightData, FlightDescriptor};
use futures::{StreamExt, stream};
use model::ValueType;
use tonic::{Code, Status};

use crate::support::*;

fn repo() -> Repo {
    let mut repo = Repo::new();
    repo.entity("k", ValueType::Int64);
    repo.view("v", &["k"], &[("f", ValueType::Int64)], 0, "v.parquet");
    let rows = vec![("k", ints([Some(1)])), ("f", ints([Some(10)])), ("t", times([Some(1)])), ("c", times([Some(1)]))];
    repo.write("v.parquet", &batch(rows));
    repo
}

/// Rows with columns of every layout.
fn rows(number: usize) -> RecordBatch {
    let words: DictionaryArray<Int32Type> =
        (0..number).map(|i| Some(if i % 2 == 0 { "even" } else { "odd" })).collect();
    let lists =
        ListArray::from_iter_primitive::<Int64Type, _, _>((0..number).map(|i| Some(vec![Some(i as i64), None])));
    batch(vec![
        ("k", ints((0..number).map(|i| Some(i as i64)))),
        ("event_timestamp", times((0..number).map(|_| Some(5)))),
        ("text", texts((0..number).map(|i| (i % 3 > 0).then(|| format!("text {i}"))))),
        ("word", Arc::new(words) as ArrayRef),
        ("list", Arc::new(lists)),
    ])
}

/// The messages of an upload.
async fn messages(frame: &RecordBatch, compression: Option<CompressionType>) -> Vec<FlightData> {
    let options = IpcWriteOptions::default().try_with_compression(compression).expect("a compression that is built in");
    FlightDataEncoderBuilder::new()
        .with_schema(frame.schema())
        .with_options(options)
        .with_flight_descriptor(Some(FlightDescriptor::new_cmd(historical(&[("v", &["f"])]).to_string())))
        .with_dictionary_handling(DictionaryHandling::Resend)
        .build(stream::iter([Ok(frame.clone())]))
        .map(|message| message.expect("encodes"))
        .collect()
        .await
}

async fn send(server: &Server, messages: Vec<FlightData>) -> Result<RecordBatch, Status> {
    let answer = server.client().await.do_exchange(stream::iter(messages)).await?.into_inner();
    collect(answer).await
}

/// The error that a client can read, of a fault of its own.
fn faults(error: &Status) -> String {
    assert!(matches!(error.code(), Code::InvalidArgument | Code::ResourceExhausted), "{error}");
    detail(error).1
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_are_cut_or_scrambled_are_refused() {
    let repo = repo();
    let server = repo.serve().await;
    let frame = rows(40);
    for (compression, flip) in [(None, 0xff), (Some(CompressionType::LZ4_FRAME), 0x01)] {
        let sound = messages(&frame, compression).await;
        let whole = send(&server, sound.clone()).await.expect("a sound upload");
        assert_eq!(whole.num_rows(), 40);
        assert!(sound.len() >= 3, "a schema, a dictionary, rows");
        let mut refused = 0;
        for at in 0..sound.len() {
            let length = sound[at].data_body.len();
            for kept in [0, 1, 7, 8, length / 2, length.saturating_sub(1)].into_iter().filter(|kept| *kept < length) {
                let mut cut = sound.clone();
                cut[at].data_body.truncate(kept);
                match send(&server, cut).await {
                    Ok(answer) => assert_eq!(answer, whole, "nothing but padding was cut off"),
                    Err(error) => {
                        assert!(faults(&error).contains("cannot be read"), "{error}");
                        refused += 1;
                    }
                }
            }
            let header = sound[at].data_header.clone();
            for place in 0..header.len() {
                let mut bytes = header.to_vec();
                bytes[place] ^= flip;
                let mut scrambled = sound.clone();
                scrambled[at].data_header = bytes.into();
                // What is still a table is answered; the rest is refused in words.
                if let Err(error) = send(&server, scrambled).await {
                    faults(&error);
                }
            }
        }
        assert!(refused >= 8, "{refused}");
    }
    assert_eq!(send(&server, messages(&frame, None).await).await.expect("unharmed").num_rows(), 40);
}

#[tokio::test]
async fn no_room_is_made_for_what_is_only_declared() {
    let repo = repo();
    let offline = repo.offline(64 << 20);
    let server = Server::start(offline.clone()).await;
    // A trillion rows of nothing: as Arrow they take no byte.
    let nothing: ArrayRef = Arc::new(NullArray::new(1 << 40));
    let claimed = batch(vec![("k", nothing.clone()), ("event_timestamp", nothing)]);
    let error = send(&server, messages(&claimed, None).await).await.expect_err("too many rows");
    assert!(faults(&error).contains("memory limit"), "{error}");
    // A compressed buffer that says it is a petabyte.
    let plain =
        batch(vec![("k", Arc::new(Int64Array::from(vec![1; 4096]))), ("event_timestamp", times([Some(5); 4096]))]);
    let mut packed = messages(&plain, Some(CompressionType::LZ4_FRAME)).await;
    let body = &mut packed.last_mut().expect("rows").data_body;
    let mut bytes = body.to_vec();
    let lengths: Vec<usize> =
        (0..bytes.len() - 8).step_by(8).filter(|at| bytes[*at..at + 8] == (4096_i64 * 8).to_le_bytes()).collect();
    assert_eq!(lengths.len(), 2, "two columns of 4096 rows");
    for at in lengths {
        bytes[at..at + 8].copy_from_slice(&(1_i64 << 50).to_le_bytes());
    }
    *body = bytes.into();
    let error = send(&server, packed).await.expect_err("too long");
    assert!(faults(&error).contains("memory limit"), "{error}");
    assert_eq!(offline.reserved_bytes(), 0, "all is given back");
    assert!(send(&server, messages(&plain, Some(CompressionType::LZ4_FRAME)).await).await.is_ok(), "unharmed");
}

#[tokio::test]
async fn a_table_keeps_the_schema_that_it_began_with() {
    let repo = repo();
    let server = repo.serve().await;
    let (one, other) = (rows(3), batch(vec![("k", ints([Some(1)])), ("event_timestamp", times([Some(1)]))]));
    let (first, mut second) = (messages(&one, None).await, messages(&other, None).await);
    let both: Vec<_> = first.iter().chain(&second).cloned().collect();
    let error = send(&server, both).await.expect_err("two schemas");
    assert!(faults(&error).contains("chema"), "{error}");
    // Rows of another schema behind the first one's.
    let mixed: Vec<_> = first[..1].iter().cloned().chain(second.split_off(1)).collect();
    faults(&send(&server, mixed).await.expect_err("rows of another schema"));
    let headless: Vec<_> = first[1..].to_vec();
    faults(&send(&server, headless).await.expect_err("no schema"));
    assert!(send(&server, first).await.is_ok(), "unharmed");
}
