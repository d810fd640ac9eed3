//! On-demand views through the verbs: what the functions are given, and what becomes of what they give.

use model::answer::Answer;
use model::ports::{NamedColumn, Transformation};
use model::registry::FeatureRequest;
use model::value::ValueType;
use model::value::proto_value::Val;
use model::{Error, Kind, Result, Timestamp, Value};
use prost::Message;
use proto::feast::serving::FieldStatus;
use service::push::{Destination, How};
use service::retrieve::Request;

use crate::support::*;

const ONLINE: Destination = Destination { online: true, offline: false };
const HOW: How = How { allow_registry_cache: true, transform_on_write: true };
const AS_IT_IS: How = How { allow_registry_cache: true, transform_on_write: false };

async fn ask(world: &World, refs: &[&str], entities: &[(&str, &[i64])]) -> Result<Answer> {
    let entities = entities.iter().map(|(name, values)| ((*name).to_owned(), integers(values))).collect();
    let request = Request {
        features: FeatureRequest::Refs(refs.iter().map(|r| (*r).to_owned()).collect()),
        entities,
        full_feature_names: false,
        include_feature_view_version_metadata: false,
    };
    world.retriever.get_online_features(request).await
}

/// A feature's values, statuses and times.
fn feature(answer: &Answer, name: &str) -> Vec<(Value, FieldStatus, Timestamp)> {
    for view in &answer.views {
        if let Some(at) = view.names().iter().position(|n| n == name) {
            return view.feature(at).map(|c| (Value::decode(c.value).expect("a value"), c.status, c.time)).collect();
        }
    }
    panic!(
        "{name} is not answered: {:?}",
        answer.views.iter().map(model::answer::ViewAnswer::names).collect::<Vec<_>>()
    )
}

fn values(answer: &Answer, name: &str) -> Vec<Value> {
    feature(answer, name).into_iter().map(|(value, ..)| value).collect()
}

fn names(answer: &Answer) -> Vec<String> {
    answer.views.iter().flat_map(|v| v.names().to_vec()).collect()
}

fn plus(call: &Transformation, a: &str, b: &str, out: &str) -> Vec<NamedColumn> {
    let sums: Vec<i64> = taken(call, a).iter().zip(taken(call, b)).map(|(x, y)| x + y).collect();
    vec![named(out, &sums)]
}

/// `sum` is trips + val, `twice` is sum + sum, `stored` is written: trips + seats.
async fn rides() -> World {
    let objects = vec![
        plain("stats", &["trips", "seats"]),
        computed(
            "sum",
            &["total", "unused"],
            vec![of_view("stats", &["trips"]), of_request("val", ValueType::Int64)],
            false,
        ),
        computed("twice", &["doubled"], vec![of_view("sum", &["total"])], false),
        computed("stored", &["people"], vec![of_view("stats", &["trips", "seats"])], true),
    ];
    let functions = Functions::default()
        .with("sum", |call| {
            Ok([plus(call, "trips", "val", "total"), vec![named("unused", &vec![0; call.rows])]].concat())
        })
        .with("twice", |call| Ok(plus(call, "total", "total", "doubled")))
        .with("stored", |call| Ok(plus(call, "trips", "seats", "people")));
    world(objects, Some(functions)).await
}

const AT: i64 = NOW - 60;

async fn push(world: &World, driver: i64, trips: i64, seats: i64, at: i64) -> Result<()> {
    let columns = [("driver_id", driver), ("trips", trips), ("seats", seats), ("event_timestamp", at)];
    let columns: Vec<(&str, Vec<i64>)> = columns.into_iter().map(|(name, n)| (name, vec![n])).collect();
    let columns: Vec<(&str, &[i64])> = columns.iter().map(|(name, cells)| (*name, cells.as_slice())).collect();
    world.pusher.push("rides", &frame(&columns), ONLINE, HOW).await
}

#[tokio::test]
async fn functions_run_in_order_over_what_is_read() {
    let world = rides().await;
    push(&world, 1, 10, 4, AT).await.expect("pushed");
    world.functions.calls.lock().expect("no panic").clear();
    let refs = ["twice:doubled", "stats:seats"];
    let answer = ask(&world, &refs, &[("driver_id", &[1, 2]), ("val", &[5, 6])]).await.expect("answered");
    assert_eq!(world.functions.ran(), ["sum", "twice"]);
    let first = world.functions.calls.lock().expect("no panic")[0].clone();
    assert_eq!((first.rows, first.writing), (2, false));
    let columns: Vec<_> = first.columns.iter().map(|c| (c.name.as_str(), c.value_type)).collect();
    let wanted = [("driver_id", ValueType::Int64), ("val", ValueType::Int64), ("trips", ValueType::Int64)];
    assert_eq!(columns, wanted, "the entities, the request data and what it takes of its source, no more");
    assert_eq!(taken(&first, "trips"), [10, -1], "driver 2 is nowhere: null");
    assert_eq!(names(&answer), ["seats", "doubled"], "nothing but what was asked for");
    assert_eq!(values(&answer, "doubled"), integers(&[30, 10]));
    assert_eq!(values(&answer, "seats"), some(&[Some(4), None]));
    assert!(answer.columns.iter().all(|(name, _)| name == "driver_id"), "request data is not answered");
    let (_, status, time) = feature(&answer, "doubled").remove(1);
    assert_eq!((status, time), (FieldStatus::Present, Timestamp::default()), "as Feast has it");
}

#[tokio::test]
async fn each_function_takes_request_data_in_its_own_type() {
    let objects = vec![
        computed("whole", &["x"], vec![of_request("val", ValueType::Int64)], false),
        computed("broken", &["y"], vec![of_request("val", ValueType::Double)], false),
    ];
    let functions = Functions::default().with("whole", |_| Ok(vec![named("x", &[1])]));
    let world = world(objects, Some(functions.with("broken", |_| Ok(vec![named("y", &[1])])))).await;
    ask(&world, &["whole:x", "broken:y"], &[("val", &[2])]).await.expect("answered");
    let calls = world.functions.calls.lock().expect("no panic").clone();
    let given: Vec<_> =
        calls.iter().map(|c| c.columns.iter().find(|c| c.name == "val").expect("val").clone()).collect();
    assert_eq!((given[0].value_type, &given[0].values), (ValueType::Int64, &integers(&[2])));
    let double = Value { val: Some(Val::DoubleVal(2.0)) };
    assert_eq!((given[1].value_type, &given[1].values), (ValueType::Double, &vec![double]));
}

#[tokio::test]
async fn what_a_function_gives_is_checked() {
    let objects = || vec![computed("f", &["x"], vec![of_request("val", ValueType::Int64)], false)];
    let short = Functions::default().with("f", |_| Ok(vec![named("x", &[1])]));
    let other = Functions::default().with("f", |_| Ok(vec![named("y", &[1, 2])]));
    let fails = Functions::default().with("f", |_| Err(Error::invalid("ValueError: no")));
    for (functions, said) in [
        (Some(short), "1 values of x for 2 rows"),
        (Some(other), "did not give the feature x, but [y]"),
        (Some(fails), "ValueError: no"),
        (None, "built without transformations"),
    ] {
        let without = functions.is_none();
        let world = world(objects(), functions).await;
        let error = ask(&world, &["f:x"], &[("val", &[1, 2])]).await.expect_err(said);
        assert!(error.message().contains(said), "{}", error.message());
        assert_eq!(error.kind(), if without { Kind::Unsupported } else { Kind::InvalidArgument });
    }
}

#[tokio::test]
async fn request_data_that_is_missing_calls_nothing() {
    let world = rides().await;
    let error = ask(&world, &["sum:total"], &[("driver_id", &[1])]).await.expect_err("no val");
    assert_eq!(error.class(), "RequestDataNotFoundInEntityRowsException");
    assert!(world.functions.ran().is_empty());
}

#[tokio::test]
async fn a_push_computes_the_written_views_of_what_it_pushes() {
    let world = rides().await;
    push(&world, 1, 10, 4, AT).await.expect("pushed");
    assert_eq!(world.functions.ran(), ["stored"]);
    let call = world.functions.calls.lock().expect("no panic")[0].clone();
    assert!(call.writing);
    let answer = ask(&world, &["stored:people"], &[("driver_id", &[1])]).await.expect("answered");
    assert_eq!(world.functions.ran(), ["stored"], "it is read like any other view");
    let at = Timestamp::from_seconds(AT);
    assert_eq!(feature(&answer, "people"), [(integers(&[14]).remove(0), FieldStatus::Present, at)]);
    // a push of older rows changes neither
    push(&world, 1, 90, 90, AT - 1).await.expect("pushed");
    let answer = ask(&world, &["stored:people", "stats:trips"], &[("driver_id", &[1])]).await.expect("answered");
    assert_eq!((values(&answer, "people"), values(&answer, "trips")), (integers(&[14]), integers(&[10])));
    // a frame without all that the function takes is the plain view's alone
    let part = frame(&[("driver_id", &[1]), ("trips", &[11]), ("event_timestamp", &[NOW])]);
    world.pusher.push("rides", &part, ONLINE, HOW).await.expect("pushed");
    assert_eq!(world.functions.ran().len(), 2);
}

#[tokio::test]
async fn a_push_is_written_whole_or_not_at_all() {
    let objects =
        vec![plain("stats", &["trips"]), computed("stored", &["x"], vec![of_view("stats", &["trips"])], true)];
    let functions = Functions::default().with("stored", |_| Err(Error::invalid("TypeError: no")));
    let world = world(objects, Some(functions)).await;
    let sent = frame(&[("driver_id", &[1]), ("trips", &[11]), ("event_timestamp", &[NOW])]);
    let error = world.pusher.push("rides", &sent, ONLINE, HOW).await.expect_err("the function fails");
    assert!(error.message().contains("TypeError"), "{}", error.message());
    assert_eq!(*world.store.writes.lock().expect("no panic"), 0);
    world.pusher.push("rides", &sent, ONLINE, AS_IT_IS).await.expect("nothing is computed");
    let answer = ask(&world, &["stats:trips", "stored:x"], &[("driver_id", &[1])]).await.expect("answered");
    assert_eq!((values(&answer, "trips"), values(&answer, "x")), (integers(&[11]), some(&[None])));
}

#[tokio::test]
async fn a_write_computes_unless_it_is_told_not_to() {
    let world = rides().await;
    let all = |people: i64| {
        frame(&[
            ("driver_id", &[1]),
            ("trips", &[2]),
            ("seats", &[3]),
            ("people", &[people]),
            ("event_timestamp", &[AT]),
        ])
    };
    let people = async || values(&ask(&world, &["stored:people"], &[("driver_id", &[1])]).await.expect("it"), "people");
    world.pusher.write_to_online_store("stored", &all(100), HOW).await.expect("written");
    assert_eq!(people().await, integers(&[5]), "computed");
    world.pusher.write_to_online_store("stored", &all(100), AS_IT_IS).await.expect("written");
    assert_eq!(people().await, integers(&[100]), "as it was sent");
    assert_eq!(world.functions.ran(), ["stored"]);
    // features alone, as the SDK sends them, are not computed again; without a time they are now's
    let features = frame(&[("driver_id", &[1]), ("people", &[7])]);
    world.pusher.write_to_online_store("stored", &features, HOW).await.expect("written");
    assert_eq!(world.functions.ran(), ["stored"]);
    let answer = ask(&world, &["stored:people"], &[("driver_id", &[1])]).await.expect("answered");
    let now = Timestamp::from_seconds(NOW);
    assert_eq!(feature(&answer, "people"), [(integers(&[7]).remove(0), FieldStatus::Present, now)]);
}

#[tokio::test]
async fn a_write_that_cannot_be_is_refused_by_name() {
    let world = rides().await;
    let refused = async |view: &str, columns: &[(&str, &[i64])], how: How| {
        let error = world.pusher.write_to_online_store(view, &frame(columns), how).await.expect_err(view);
        assert_eq!(error.kind(), Kind::InvalidArgument);
        error.message().to_owned()
    };
    let part: &[(&str, &[i64])] = &[("driver_id", &[1]), ("trips", &[2])];
    assert!(refused("stored", part, HOW).await.contains("Missing the column 'seats'"));
    assert!(refused("stored", part, AS_IT_IS).await.contains("no column of the request is a feature of stored"));
    for how in [HOW, AS_IT_IS] {
        assert!(refused("sum", &[("driver_id", &[1]), ("total", &[2])], how).await.contains("write_to_online_store"));
        assert!(refused("stored", &[("people", &[1])], how).await.contains("driver_id"));
    }
    assert_eq!(*world.store.writes.lock().expect("no panic"), 0);
}

#[tokio::test]
async fn a_function_may_make_more_rows_of_a_key() {
    let objects =
        vec![plain("stats", &["trips"]), computed("stored", &["x"], vec![of_view("stats", &["trips"])], true)];
    let more = |keys: &'static [i64]| {
        let functions = Functions::default().with("stored", move |_| {
            Ok(vec![named("driver_id", keys), named("x", &(0..keys.len() as i64).collect::<Vec<_>>())])
        });
        world(objects.clone(), Some(functions))
    };
    let sent = frame(&[("driver_id", &[1, 2]), ("trips", &[5, 6]), ("event_timestamp", &[AT, AT - 1])]);
    let world = more(&[2, 1, 2]).await;
    world.pusher.write_to_online_store("stored", &sent, HOW).await.expect("written");
    let answer = ask(&world, &["stored:x"], &[("driver_id", &[1, 2])]).await.expect("answered");
    let given: Vec<_> = feature(&answer, "x").into_iter().map(|(v, _, t)| (v, t)).collect();
    let at = |s: i64| Timestamp::from_seconds(s);
    let wanted = integers(&[1, 2]).into_iter().zip([at(AT), at(AT - 1)]).collect::<Vec<_>>();
    assert_eq!(given, wanted, "each with the time of its key's row; of two of a time, the last");
    let world = more(&[1, 9, 2]).await;
    let error = world.pusher.write_to_online_store("stored", &sent, HOW).await.expect_err("9 was not sent");
    assert!(error.message().contains("a key that was not sent"), "{}", error.message());
}
