//! Plans of computed features over a registry made of Feast's own messages. Knows no rows.

use proto::feast::core;
use proto::feast::core::on_demand_source::Source;

use super::super::fixtures::{columns, object, registry, view};
use super::*;
use crate::ports::{Object, ObjectKind};
use crate::registry::{FeatureRequest, Registry};
use crate::value::proto_value::Val;

/// A plain view on `driver_id`.
fn plain(name: &str, features: &[&str]) -> Object {
    view(name, ValueType::Int64, features)
}

fn of_view(view: &str, features: &[&str]) -> Source {
    Source::FeatureViewProjection(core::FeatureViewProjection {
        feature_view_name: view.into(),
        feature_columns: columns(features, ValueType::Int64),
        ..Default::default()
    })
}

fn of_request(name: &str, value_type: ValueType) -> Source {
    let field = core::FeatureSpecV2 { name: name.into(), value_type: value_type.into(), ..Default::default() };
    let options = core::data_source::RequestDataOptions { schema: vec![field], ..Default::default() };
    let options = core::data_source::Options::RequestDataOptions(options);
    Source::RequestDataSource(core::DataSource { options: Some(options), ..Default::default() })
}

fn computed_spec(name: &str, features: &[&str], sources: Vec<Source>) -> core::OnDemandFeatureViewSpec {
    let sources = sources.into_iter().enumerate();
    core::OnDemandFeatureViewSpec {
        name: name.into(),
        features: columns(features, ValueType::Int64),
        // the names of sources are those of Feast's dict: here they keep the order
        sources: sources.map(|(at, s)| (format!("source{at}"), core::OnDemandSource { source: Some(s) })).collect(),
        ..Default::default()
    }
}

fn computed(name: &str, features: &[&str], sources: Vec<Source>) -> Object {
    let spec = Some(computed_spec(name, features, sources));
    object(ObjectKind::OnDemandFeatureView, name, &core::OnDemandFeatureView { spec, meta: None })
}

fn plan(registry: &Registry, refs: &[&str]) -> Result<Plan> {
    let refs = refs.iter().map(|r| (*r).to_owned()).collect();
    Plan::new(registry.project("p").expect("the project"), "p", &FeatureRequest::Refs(refs), false)
}

fn part(plan: &Plan) -> &OnDemandPlan {
    plan.on_demand.as_ref().expect("something is computed")
}

/// What each step takes, by name, and from where, in words.
fn inputs(plan: &Plan, step: usize) -> Vec<(String, String)> {
    let from = |from: &From| match from {
        From::View { view, feature } => {
            let read = &plan.views[*view];
            format!("{}:{}", read.view.name, read.features[*feature].name)
        }
        From::Step { step, feature } => format!("{}:{feature}", part(plan).steps[*step].view.name),
        From::Request => "request".into(),
    };
    part(plan).steps[step].inputs.iter().map(|(field, f)| (field.name.clone(), from(f))).collect()
}

fn pairs(wanted: &[(&str, &str)]) -> Vec<(String, String)> {
    wanted.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
}

fn integers(values: &[i64]) -> Vec<Value> {
    values.iter().map(|n| Value { val: Some(Val::Int64Val(*n)) }).collect()
}

/// `a` takes `b`'s feature, which takes `c`'s, which takes a plain view's.
fn chained() -> Registry {
    registry(vec![
        plain("stats", &["trips", "seats", "unused"]),
        computed("a", &["a1"], vec![of_view("b", &["b1"]), of_view("stats", &["seats"])]),
        computed("b", &["b1", "b2"], vec![of_view("c", &["c1"]), of_request("val", ValueType::Int64)]),
        computed("c", &["c1"], vec![of_view("stats", &["trips"])]),
        computed("apart", &["x"], vec![of_request("other", ValueType::Int64)]),
    ])
}

#[test]
fn a_function_runs_behind_those_whose_features_it_takes() {
    let registry = chained();
    let plan = plan(&registry, &["a:a1"]).expect("a plan");
    let names: Vec<_> = part(&plan).steps.iter().map(|s| s.view.name.as_str()).collect();
    assert_eq!(names, ["c", "b", "a"]);
    assert_eq!(part(&plan).mentioned, [2], "only a's features are answered");
    let answered = |s: &Step| s.answer.iter().map(|(_, name)| name.clone()).collect::<Vec<_>>();
    assert_eq!(part(&plan).steps.iter().map(answered).collect::<Vec<_>>(), [vec![], vec![], vec!["a1".to_owned()]]);
    assert_eq!(inputs(&plan, 0), pairs(&[("trips", "stats:trips")]));
    assert_eq!(inputs(&plan, 1), pairs(&[("val", "request"), ("c1", "c:c1")]));
    assert_eq!(inputs(&plan, 2), pairs(&[("b1", "b:b1"), ("seats", "stats:seats")]));
}

#[test]
fn every_step_stands_once_whatever_asks_for_it() {
    let registry = chained();
    let plan = plan(&registry, &["c:c1", "a:a1", "b:b2"]).expect("a plan");
    let names: Vec<_> = part(&plan).steps.iter().map(|s| s.view.name.as_str()).collect();
    assert_eq!(names, ["c", "b", "a"]);
    assert_eq!(part(&plan).mentioned, [0, 2, 1], "in the order of the request");
}

#[test]
fn only_what_is_asked_for_and_taken_is_read() {
    let registry = chained();
    let plan = plan(&registry, &["a:a1", "stats:unused"]).expect("a plan");
    let read: Vec<Vec<_>> = plan.views.iter().map(|v| v.features.iter().map(|f| f.name.as_str()).collect()).collect();
    assert_eq!(part(&plan).asked, 1);
    assert_eq!(read, [vec!["unused"], vec!["trips", "seats"]], "asked for, then taken: each column once");
    // what no function of the plan takes is not asked of the request
    let told = part(&plan).tell_apart(vec![("val".into(), integers(&[1])), ("driver_id".into(), integers(&[7]))]);
    assert_eq!(told.expect("'other' is not needed").entities, [("driver_id".to_owned(), integers(&[7]))]);
}

#[test]
fn a_service_runs_only_the_functions_it_has() {
    let mut objects = vec![
        plain("stats", &["trips"]),
        computed("one", &["x"], vec![of_view("stats", &["trips"])]),
        computed("two", &["x"], vec![of_request("val", ValueType::Int64)]),
        computed("three", &["y"], vec![of_request("other", ValueType::Int64)]),
    ];
    let projection = |view: &str, alias: &str, features: &[&str]| core::FeatureViewProjection {
        feature_view_name: view.into(),
        feature_view_name_alias: alias.into(),
        feature_columns: columns(features, ValueType::Int64),
        ..Default::default()
    };
    let features = vec![projection("two", "second", &["x"]), projection("one", "", &["x"])];
    let spec = core::FeatureServiceSpec { name: "s".into(), features, ..Default::default() };
    objects.push(object(ObjectKind::FeatureService, "s", &core::FeatureService { spec: Some(spec), meta: None }));
    let registry = registry(objects);
    let request = FeatureRequest::Service("s".into());
    let project = registry.project("p").expect("the project");
    let plan = Plan::new(project, "p", &request, true).expect("a plan");
    let names: Vec<_> = part(&plan).steps.iter().map(|s| s.view.name.as_str()).collect();
    assert_eq!(names, ["two", "one"]);
    let answered: Vec<_> = part(&plan).steps.iter().flat_map(|s| s.answer.iter().map(|(_, n)| n.as_str())).collect();
    assert_eq!(answered, ["second__x", "one__x"]);
    let clash = Plan::new(project, "p", &request, false).expect_err("both are 'x'");
    assert!(clash.message().starts_with("Duplicate features named x found"), "{}", clash.message());
}

#[test]
fn functions_that_take_one_another_are_refused() {
    let mutual = registry(vec![
        computed("a", &["a1"], vec![of_view("b", &["b1"])]),
        computed("b", &["b1"], vec![of_view("a", &["a1"])]),
        computed("own", &["o"], vec![of_view("own", &["o"])]),
    ]);
    for (asked, named) in [("a:a1", "view a takes its own"), ("b:b1", "view b takes its own"), ("own:o", "own takes")] {
        let error = plan(&mutual, &[asked]).expect_err("a circle");
        assert_eq!(error.kind(), Kind::InvalidArgument);
        assert!(error.message().contains(named), "{}", error.message());
    }
}

#[test]
fn a_name_that_two_sources_have_is_the_first_ones() {
    let registry = registry(vec![
        plain("stats", &["trips"]),
        plain("more", &["trips", "val"]),
        computed(
            "twice",
            &["x"],
            vec![of_view("stats", &["trips"]), of_view("more", &["trips", "val"]), of_request("val", ValueType::Int64)],
        ),
    ]);
    let plan = plan(&registry, &["twice:x"]).expect("a plan");
    let wanted =
        [("val", "request"), ("trips", "stats:trips"), ("more__trips", "more:trips"), ("more__val", "more:val")];
    assert_eq!(inputs(&plan, 0), pairs(&wanted));
}

#[test]
fn missing_request_data_is_named() {
    let registry = registry(vec![computed(
        "data",
        &["x"],
        vec![of_request("val", ValueType::Int64), of_request("factor", ValueType::Double)],
    )]);
    let plan = plan(&registry, &["data:x"]).expect("a plan");
    let error = part(&plan).tell_apart(vec![("val".into(), integers(&[1]))]).expect_err("no factor");
    assert_eq!(error.class(), "RequestDataNotFoundInEntityRowsException");
    assert_eq!(error.kind(), Kind::NotFound);
    assert!(error.message().contains("['factor']"), "{}", error.message());
    let unequal = vec![("val".into(), integers(&[1, 2])), ("factor".into(), integers(&[1]))];
    assert!(part(&plan).tell_apart(unequal).expect_err("unequal").message().contains("'factor' has 1"));
    let text = Value { val: Some(Val::StringVal("x".into())) };
    let error = part(&plan).tell_apart(vec![("val".into(), vec![text]), ("factor".into(), integers(&[1]))]);
    assert!(error.expect_err("text is no integer").message().contains("the request data 'val'"));
    // rows without entities are everybody's, as many as there are
    let told = part(&plan).tell_apart(vec![("val".into(), integers(&[1, 2])), ("factor".into(), integers(&[3, 4]))]);
    let told = told.expect("all is there");
    assert_eq!(told.entities, [(DUMMY_ENTITY_ID.to_owned(), vec![crate::value::NULL; 2])]);
}

#[test]
fn each_function_gets_the_request_data_in_its_own_type() {
    let registry = registry(vec![
        computed("whole", &["x"], vec![of_request("val", ValueType::Int64)]),
        computed("broken", &["y"], vec![of_request("val", ValueType::Double)]),
    ]);
    for refs in [["whole:x", "broken:y"], ["broken:y", "whole:x"]] {
        let plan = plan(&registry, &refs).expect("a plan");
        let told = part(&plan).tell_apart(vec![("val".into(), integers(&[2]))]).expect("it is there");
        assert_eq!(told.request[&("val".to_owned(), ValueType::Int64)], integers(&[2]));
        let doubles = vec![Value { val: Some(Val::DoubleVal(2.0)) }];
        assert_eq!(told.request[&("val".to_owned(), ValueType::Double)], doubles);
    }
}

#[test]
fn what_is_not_there_or_switched_off_is_named() {
    let mut off = computed_spec("off", &["x"], vec![of_request("val", ValueType::Int64)]);
    off.disabled = true;
    let off = core::OnDemandFeatureView { spec: Some(off), meta: None };
    let registry = registry(vec![
        plain("stats", &["trips"]),
        computed("no_view", &["x"], vec![of_view("gone", &["trips"])]),
        computed("no_feature", &["x"], vec![of_view("stats", &["gone"])]),
        computed("of_off", &["x"], vec![of_view("off", &["x"])]),
        object(ObjectKind::OnDemandFeatureView, "off", &off),
    ]);
    let error = |asked: &str| plan(&registry, &[asked]).expect_err(asked);
    assert!(error("no_view:x").message().contains("gone"));
    assert!(error("no_feature:x").message().contains("gone"));
    assert_eq!(error("no_view:x").kind(), Kind::NotFound);
    for asked in ["off:x", "of_off:x"] {
        assert_eq!(error(asked).kind(), Kind::Conflict);
        assert!(error(asked).message().contains("view 'off' is disabled"), "{}", error(asked).message());
    }
}

#[test]
fn a_write_takes_each_name_once() {
    let registry = registry(vec![
        plain("stats", &["trips", "seats"]),
        plain("more", &["trips"]),
        computed(
            "w",
            &["x"],
            vec![of_view("stats", &["trips"]), of_view("more", &["trips"]), of_request("val", ValueType::Double)],
        ),
    ]);
    let project = registry.project("p").expect("the project");
    let view = project.view("w", "p").expect("the view");
    let fields = written_inputs(project, "p", view).expect("both sources are there");
    let named: Vec<_> = fields.iter().map(|f| (f.name.as_str(), f.value_type)).collect();
    assert_eq!(named, [("val", ValueType::Double), ("trips", ValueType::Int64)]);
    assert!(written_inputs(project, "p", project.view("stats", "p").expect("it")).expect("nothing").is_empty());
}
