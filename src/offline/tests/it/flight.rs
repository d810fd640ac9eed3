//! The protocol: both flows of a read, restarts, large messages, errors, clients that hang up.

use std::time::Duration;

use arrow::array::{Array, AsArray};
use arrow_flight::{FlightData, FlightDescriptor, Ticket};
use futures::{StreamExt, stream};
use model::ValueType;
use tonic::Code;

use crate::support::*;

fn repo() -> Repo {
    let mut repo = Repo::new();
    repo.entity("k", ValueType::Int64);
    repo.view("v", &["k"], &[("f", ValueType::Int64)], 0, "v.parquet");
    repo.view("gone", &["k"], &[("f", ValueType::Int64)], 0, "gone.parquet");
    repo.view("far", &["k"], &[("f", ValueType::Int64)], 0, "hdfs://bucket/far.parquet");
    repo.view("lean", &["k"], &[("absent", ValueType::Int64)], 0, "v.parquet");
    let columns = vec![
        ("k", ints([Some(1), Some(2)])),
        ("f", ints([Some(10), Some(20)])),
        ("t", times([Some(5), Some(5)])),
        ("c", times([None, None])),
    ];
    repo.write("v.parquet", &batch(columns));
    repo
}

fn frame(keys: &[i64]) -> arrow::array::RecordBatch {
    batch(vec![("k", ints(keys.iter().copied().map(Some))), ("event_timestamp", times(keys.iter().map(|_| Some(9))))])
}

#[tokio::test]
async fn the_older_flow_gives_the_same_across_a_restart() {
    let repo = repo();
    let command = historical(&[("v", &["f"])]);
    let server = repo.serve().await;
    let new = server.exchange(&command, &frame(&[2, 3, 1])).await.expect("exchange");
    server.put(&command, &frame(&[2, 3, 1])).await.expect("put");
    drop(server);
    let server = repo.serve().await;
    let listed = server.client().await.list_flights(arrow_flight::Criteria::default()).await.expect("lists");
    let listed: Vec<_> = listed.into_inner().collect().await;
    assert_eq!(listed.len(), 1);
    assert_eq!(server.get(&command).await.expect("get"), new);
    assert_eq!(new.column(2), &ints([Some(20), None, Some(10)]));
    // Fetched, it is gone.
    let error = server.get(&command).await.expect_err("forgotten");
    assert_eq!(error.code(), Code::NotFound);
    assert!(detail(&error).1.contains("Flight not found"));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_large_message_comes_in_and_small_ones_go_out() {
    let repo = repo();
    let keys: Vec<i64> = (0..1_000_000).map(|i| i % 3).collect();
    let server = repo.serve().await;
    // The client of the tests takes messages of 4 MiB, as gRPC clients do by default; the frame is 16 MB.
    let got = server.exchange(&historical(&[("v", &["f"])]), &frame(&keys)).await.expect("joins");
    assert_eq!(got.num_rows(), keys.len());
    let found = got.column(2).as_primitive::<arrow::datatypes::Int64Type>();
    assert_eq!(arrow::compute::sum(found), Some(333_333 * 30));
}

#[tokio::test]
async fn every_mistake_is_told_as_feast_tells_it() {
    let repo = repo();
    let server = repo.serve().await;
    let good = frame(&[1]);
    let lacking = batch(vec![("event_timestamp", times([Some(1)]))]);
    let timeless = batch(vec![("k", ints([Some(1)]))]);
    let text_key = batch(vec![("k", texts([Some("1".into())])), ("event_timestamp", times([Some(1)]))]);
    let number_time = batch(vec![("k", ints([Some(1)])), ("event_timestamp", ints([Some(1)]))]);
    let named_so =
        batch(vec![("k", ints([Some(1)])), ("event_timestamp", times([Some(1)])), ("v__f", ints([Some(1)]))]);
    let of = |view: &'static str, feature: &'static str| historical(&[(view, &[feature])]);
    let mut other_project = of("v", "f");
    other_project["project"] = "q".into();
    let mut alias = of("v", "f");
    alias["name_aliases"] = serde_json::json!(["w"]);
    alias["feature_refs"] = serde_json::json!(["w:f"]);
    let mut twice = of("v", "f");
    twice["feature_refs"] = serde_json::json!(["v:f", "v:f"]);
    let mut nothing = of("v", "f");
    nothing["feature_refs"] = serde_json::json!([]);
    for (command, frame, class, text, code) in [
        (
            of("x", "f"),
            &good,
            "FeatureViewNotFoundException",
            "Feature view x does not exist in project p",
            Code::NotFound,
        ),
        (
            of("v", "g"),
            &good,
            "FeatureViewNotFoundException",
            "Feature g does not exist in feature view v",
            Code::NotFound,
        ),
        (other_project, &good, "ProjectObjectNotFoundException", "Project q does not exist", Code::NotFound),
        (alias, &good, "FeastError", "under the name w", Code::InvalidArgument),
        (twice, &good, "FeatureNameCollisionError", "v__f", Code::InvalidArgument),
        (nothing, &good, "FeastError", "No features", Code::InvalidArgument),
        (of("v", "f"), &lacking, "FeastEntityDFMissingColumnsError", "but {'k'} were missing", Code::InvalidArgument),
        (of("v", "f"), &timeless, "EntityTimestampInferenceException", "named event_timestamp", Code::InvalidArgument),
        (of("v", "f"), &number_time, "EntityDFNotDateTime", "as a datetime", Code::InvalidArgument),
        (of("v", "f"), &text_key, "FeastError", "'k'", Code::InvalidArgument),
        (of("v", "f"), &named_so, "FeastError", "v__f", Code::InvalidArgument),
        (of("gone", "f"), &good, "FeastError", "gone.parquet", Code::InvalidArgument),
        (of("far", "f"), &good, "FeastError", "hdfs://bucket/far.parquet", Code::Unimplemented),
        (
            of("lean", "absent"),
            &good,
            "FeastError",
            "has no column 'absent': its columns are k, f, t, c",
            Code::InvalidArgument,
        ),
    ] {
        let error = server.exchange(&command, frame).await.expect_err(text);
        let (found, message) = detail(&error);
        assert_eq!((found.as_str(), error.code()), (class, code), "{message}");
        assert!(message.contains(text), "{message}");
        server.put(&command, frame).await.expect("an upload is not looked into");
        let error = server.get(&command).await.expect_err(text);
        assert_eq!(detail(&error), (found, message), "the older flow");
    }
    assert!(server.exchange(&of("v", "f"), &good).await.is_ok(), "unharmed");
}

#[tokio::test]
async fn what_is_no_table_or_no_command_is_refused() {
    let repo = repo();
    let server = repo.serve().await;
    let mut client = server.client().await;
    let descriptor = |command: &[u8]| Some(FlightDescriptor::new_cmd(command.to_vec()));
    let good = historical(&[("v", &["f"])]).to_string();
    let broken = FlightData { flight_descriptor: descriptor(good.as_bytes()), ..FlightData::default() }
        .with_data_header(vec![1, 2, 3]);
    let error = match client.do_exchange(stream::iter([broken])).await {
        Ok(answer) => collect(answer.into_inner()).await.expect_err("no table"),
        Err(error) => error,
    };
    assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    for command in [&b""[..], b"{", b"[]", b"{}", b"\xff", b"{\"api\": \"drop_everything\"}"] {
        let upload = upload(command, &frame(&[1]));
        let error = client.do_exchange(upload).await.expect_err("no command");
        assert!(matches!(error.code(), Code::InvalidArgument | Code::Unimplemented), "{error}");
        detail(&error);
        let ticket = Ticket { ticket: command.to_vec().into() };
        detail(&client.do_get(ticket).await.expect_err("no command"));
    }
    let error = client.do_exchange(stream::empty()).await.expect_err("nothing");
    assert_eq!(error.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn two_projections_of_one_view_join_by_their_own_keys() {
    use proto::feast::core;
    let mut repo = repo();
    let projection = |alias: &str, column: &str| core::FeatureViewProjection {
        feature_view_name: "v".into(),
        feature_view_name_alias: alias.into(),
        feature_columns: vec![field("f", ValueType::Int64)],
        join_key_map: [("k".to_owned(), column.to_owned())].into(),
        ..Default::default()
    };
    let spec = core::FeatureServiceSpec {
        name: "s".into(),
        project: PROJECT.into(),
        features: vec![projection("from", "from_k"), projection("to", "to_k")],
        ..Default::default()
    };
    repo.put(model::ports::ObjectKind::FeatureService, "s", &core::FeatureService { spec: Some(spec), meta: None });
    let mut command = historical(&[("v", &["f"]), ("v", &["f"])]);
    command["name_aliases"] = serde_json::json!(["from", "to"]);
    command["feature_refs"] = serde_json::json!(["from:f", "to:f"]);
    let frame = batch(vec![
        ("from_k", ints([Some(1), Some(2)])),
        ("to_k", ints([Some(2), Some(7)])),
        ("event_timestamp", times([Some(9), Some(9)])),
    ]);
    let got = repo.serve().await.exchange(&command, &frame).await.expect("joins");
    assert_eq!(got.column_by_name("from__f").expect("from"), &ints([Some(10), Some(20)]));
    assert_eq!(got.column_by_name("to__f").expect("to"), &ints([Some(20), None]));
}

#[tokio::test]
async fn entity_rows_may_be_a_select_over_the_sources() {
    let repo = repo();
    let server = repo.serve().await;
    let placeholder = batch(vec![("key", texts([Some("m".into())]))]);
    let mut command = historical(&[("v", &["f"])]);
    command["entity_df_sql"] = "SELECT k, t AS event_timestamp FROM v_source WHERE k > 1".into();
    let got = server.exchange(&command, &placeholder).await.expect("joins");
    assert_eq!((got.column(0), got.column(2)), (&ints([Some(2)]), &ints([Some(20)])));
    for (sql, text) in [
        ("SELECT k FROM nowhere", "nowhere"),
        ("SELECT FROM", "cannot be run"),
        ("DROP TABLE v_source", "cannot be run"),
        ("CREATE EXTERNAL TABLE x STORED AS PARQUET LOCATION '/etc'", "cannot be run"),
        ("COPY v_source TO '/tmp/stolen.parquet'", "cannot be run"),
        ("SELECT * FROM '/etc/passwd'", "cannot be run"),
        ("SELECT k, t AS event_timestamp FROM v_source WHERE k > 99", "No entity values found"),
    ] {
        command["entity_df_sql"] = sql.into();
        let error = server.exchange(&command, &placeholder).await.expect_err(sql);
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
        assert!(detail(&error).1.contains(text), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_hangs_up_leaves_no_work_behind() {
    let repo = repo();
    let offline = repo.offline(256 << 20);
    let server = Server::start(offline.clone()).await;
    let keys: Vec<i64> = vec![1; 500_000];
    let messages = upload(historical(&[("v", &["f"])]).to_string().as_bytes(), &frame(&keys));
    let mut client = server.client().await;
    let mut answer = client.do_exchange(messages).await.expect("begins").into_inner();
    assert!(answer.message().await.expect("a message").is_some());
    assert!(offline.reserved_bytes() > 0, "the frame is held while the result is sent");
    drop(answer);
    drop(client);
    tokio::time::timeout(Duration::from_secs(20), async {
        while offline.reserved_bytes() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("memory is given back");
}

#[tokio::test]
async fn pulls_writes_and_persists() {
    let repo = repo();
    let server = repo.serve().await;
    let placeholder = batch(vec![("key", texts([Some("m".into())]))]);
    let pull = |api: &str, keys: &[&str], from: Option<&str>, to: Option<&str>| {
        serde_json::json!({"api": api, "data_source_name": "v_source", "join_key_columns": keys,
            "feature_name_columns": ["f"], "timestamp_field": "t", "created_timestamp_column": null,
            "start_date": from, "end_date": to})
    };
    // A row more, later, for key 1.
    let later =
        batch(vec![("f", ints([Some(11)])), ("t", times([Some(7)])), ("c", times([Some(7)])), ("k", ints([Some(1)]))]);
    let write = serde_json::json!({"api": "offline_write_batch", "feature_view_names": ["v"], "name_aliases": [null],
        "progress": null});
    server.put(&write, &later).await.expect("appends");
    let latest = "pull_latest_from_table_or_query";
    let ends = ["1970-01-01T00:00:00", "1970-01-02T00:00:00+00:00"];
    let got = server.exchange(&pull(latest, &["k"], Some(ends[0]), Some(ends[1])), &placeholder).await.expect("pulls");
    let names: Vec<String> = got.schema().fields().iter().map(|f| f.name().clone()).collect();
    assert_eq!(names, ["k", "f", "t"]);
    // in the order of the source
    assert_eq!((got.column(0), got.column(1)), (&ints([Some(2), Some(1)]), &ints([Some(20), Some(11)])));
    let one = server.exchange(&pull(latest, &[], Some(ends[0]), Some(ends[1])), &placeholder).await.expect("pulls");
    assert_eq!(one.column(0), &ints([Some(11)]));
    assert_eq!(one.column_by_name("__dummy_id").expect("dummy").as_string::<i32>().value(0), "__dummy");
    let all = pull("pull_all_from_table_or_query", &["k"], None, None);
    assert_eq!(server.exchange(&all, &placeholder).await.expect("pulls").num_rows(), 3);
    let error =
        server.exchange(&pull(latest, &["zz"], Some(ends[0]), Some(ends[1])), &placeholder).await.expect_err("no key");
    assert_eq!(detail(&error).0, "FeastJoinKeysDuringMaterialization");

    let odd = batch(vec![("k", ints([Some(1)])), ("t", times([Some(8)])), ("g", ints([None]))]);
    let error = server.put(&write, &odd).await.expect_err("other columns");
    let text = detail(&error).1;
    assert!(text.contains("missing f, c") && text.contains("not in the source g"), "{text}");

    let mut persist = historical(&[("v", &["f"])]);
    persist["api"] = "persist".into();
    persist["retrieve_func"] = "get_historical_features".into();
    persist["data_source_name"] = "gone_source".into();
    persist["allow_overwrite"] = false.into();
    server.put(&persist, &frame(&[1, 2])).await.expect("persists");
    let again = server.put(&persist, &frame(&[1, 2])).await.expect_err("it is there");
    assert_eq!(detail(&again).0, "SavedDatasetLocationAlreadyExists");
    persist["allow_overwrite"] = true.into();
    server.put(&persist, &frame(&[2, 2, 2])).await.expect("overwrites");
    let columns = serde_json::json!({"api": "get_table_column_names_and_types_from_data_source",
        "data_source_proto": serde_json::json!({"fileOptions": {"uri": "gone.parquet"}}).to_string()});
    let got = server.exchange(&columns, &placeholder).await.expect("columns");
    let types = got.column(1).as_string::<i32>();
    let types: Vec<&str> = (0..types.len()).map(|i| types.value(i)).collect();
    assert_eq!(types, ["int64", "timestamp[us, tz=UTC]", "int64"]);
    let files: Vec<_> =
        std::fs::read_dir(repo.dir.path()).expect("lists").map(|e| e.expect("entry").file_name()).collect();
    assert!(files.iter().all(|f| !f.to_string_lossy().starts_with('.')), "nothing half-written stays: {files:?}");
}

#[tokio::test]
async fn a_span_of_time_gives_every_entity_once() {
    let repo = repo();
    let server = repo.serve().await;
    let placeholder = batch(vec![("key", texts([Some("m".into())]))]);
    let mut command = historical(&[("v", &["f"])]);
    command["start_date"] = "1969-12-31T00:00:00".into();
    command["end_date"] = "1970-01-01T00:00:01".into();
    let got = server.exchange(&command, &placeholder).await.expect("joins");
    assert_eq!((got.column(1), got.column(2)), (&ints([Some(1), Some(2)]), &ints([Some(10), Some(20)])));
    assert_eq!(got.column(0), &times([Some(1_000_000); 2]));
    command["end_date"] = "1969-12-31T10:00:00".into();
    assert_eq!(server.exchange(&command, &placeholder).await.expect("joins").num_rows(), 0);
}

#[tokio::test]
async fn a_row_without_a_time_is_in_no_range() {
    let repo = repo();
    let columns = vec![
        ("k", ints([Some(1), None, Some(3)])),
        ("f", ints([Some(10), Some(20), Some(30)])),
        ("t", times([Some(5), Some(6), None])),
        ("c", times([None, None, None])),
    ];
    repo.write("v.parquet", &batch(columns));
    let server = repo.serve().await;
    let placeholder = batch(vec![("key", texts([Some("m".into())]))]);
    let pull = |api: &str, from: Option<&str>| {
        serde_json::json!({"api": api, "data_source_name": "v_source", "join_key_columns": ["k"],
            "feature_name_columns": ["f"], "timestamp_field": "t", "start_date": from,
            "end_date": from.map(|_| "1970-01-02T00:00:00")})
    };
    let all = "pull_all_from_table_or_query";
    for (command, want) in [
        (pull(all, None), vec![Some(10), Some(20), Some(30)]),
        (pull(all, Some("1970-01-01T00:00:00")), vec![Some(10), Some(20)]),
        (pull("pull_latest_from_table_or_query", Some("1970-01-01T00:00:00")), vec![Some(10)]),
    ] {
        let got = server.exchange(&command, &placeholder).await.expect("pulls");
        assert_eq!(got.column(1), &ints(want), "{command}");
    }
}

#[tokio::test]
async fn logged_features_go_where_the_feature_service_says() {
    use proto::feast::core::{self, logging_config};
    let mut repo = repo();
    let mut service = |name: &str, destination: Option<logging_config::Destination>| {
        let spec = core::FeatureServiceSpec {
            name: name.into(),
            project: PROJECT.into(),
            logging_config: destination.map(|d| core::LoggingConfig { sample_rate: 1.0, destination: Some(d) }),
            ..Default::default()
        };
        repo.put(
            model::ports::ObjectKind::FeatureService,
            name,
            &core::FeatureService { spec: Some(spec), meta: None },
        );
    };
    let file = |path: &str| {
        logging_config::Destination::FileDestination(logging_config::FileDestination {
            path: path.into(),
            ..Default::default()
        })
    };
    service("logged", Some(file("logs")));
    service("far", Some(file("hdfs://bucket/logs")));
    service("silent", None);
    let server = repo.serve().await;
    let write = |name: &str| serde_json::json!({"api": "write_logged_features", "feature_service_name": name});
    for _ in 0..2 {
        server.put(&write("logged"), &frame(&[1, 2])).await.expect("writes");
    }
    let files = std::fs::read_dir(repo.dir.path().join("logs")).expect("lists");
    assert_eq!(files.filter(|f| f.as_ref().is_ok_and(|f| f.path().extension() == Some("parquet".as_ref()))).count(), 2);
    for (name, class, text) in [
        ("absent", "FeatureServiceNotFoundException", "absent"),
        ("far", "FeastError", "hdfs://bucket/logs"),
        ("silent", "FeastError", "logging_config"),
    ] {
        let error = server.put(&write(name), &frame(&[1])).await.expect_err(name);
        let (found, message) = detail(&error);
        assert_eq!(found, class);
        assert!(message.contains(text), "{message}");
    }
}
