//! What a configuration reads as, and what a bad one says.

use super::*;
use clap::Parser;

fn load_with(file: &str, text: &str, flags: &[&str]) -> Result<Config, String> {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join(file), text).expect("written");
    let path = dir.path().to_str().expect("utf-8");
    let args = ["larder", "serve", "-c", path].into_iter().chain(flags.iter().copied());
    let command = cli::Cli::try_parse_from(args).expect("flags").command;
    let cli::Command::Serve(options) = command else { panic!("{command:?}") };
    load(&options).map_err(|e| e.to_string().replace(path, "DIR"))
}

#[test]
fn flags_win_over_the_file_and_the_file_over_defaults() {
    let text = "project: demo\nonline_port: 1\nregistry_port: 2\n";
    let config = load_with("larder.yaml", text, &["--online-port", "9", "--services", "online,ingest"]).expect("good");
    assert_eq!((config.ports.online, config.ports.registry, config.ports.offline), (9, 2, 8815));
    assert_eq!(config.services, [Service::Online, Service::Ingest]);
}

#[test]
fn a_bad_key_is_named_with_file_and_line() {
    for (text, wanted) in [
        ("project: demo\nonlin_port: 1\n", ["DIR/larder.yaml:2", "onlin_port"]),
        ("project: demo\nonline_port: many\n", ["DIR/larder.yaml:2", "online_port"]),
        ("project: demo\nlimits:\n  max_entities: -1\n", ["DIR/larder.yaml:3", "limits.max_entities"]),
        ("project: demo\nlimits:\n  max_values: 0\n", ["DIR/larder.yaml:3", "limits.max_values"]),
        ("project: demo\nlimits:\n  max_json_depth: 999\n", ["DIR/larder.yaml:3", "128"]),
        ("project: demo\nlimits:\n  max_bodies: 9\n", ["DIR/larder.yaml:3", "max_bodies"]),
        ("project: demo\ningest:\n  auto_offset_reset: soon\n", ["DIR/larder.yaml:3", "ingest.auto_offset_reset"]),
        (
            "project: demo\ningest:\n  auto_offset_reset: 2026-13-01\n",
            ["DIR/larder.yaml:3", "earliest, latest and committed"],
        ),
        ("project: demo\nonline_store:\n  type: dynamodb\n", ["DIR/larder.yaml:3", "sled, memory, redis or sqlite"]),
        ("project: demo\nonline_store:\n  type: sled\n  path: x\n", ["DIR/larder.yaml:3", "sled has no path"]),
        ("project: demo\nonline_store:\n  type: redis\n  path: x\n", ["DIR/larder.yaml:3", "redis has no path"]),
        ("project: p\nonline_store:\n  type: redis\n  connection_string: a:b\n", ["DIR/larder.yaml:3", "'a:b'"]),
        ("project: demo\nonline_store:\n  type: memory\n  tier_bytes: 1\n", ["DIR/larder.yaml:3", "tier_bytes"]),
        ("project: demo\nonline_store:\n  type: redis\n  log_bytes: 1\n", ["DIR/larder.yaml:3", "log_bytes"]),
        (
            "project: demo\nonline_store:\n  type: sled\n  durability: maybe\n",
            ["DIR/larder.yaml:4", "online_store.durability"],
        ),
        ("project: demo\nregistry:\n  type: file\n", ["DIR/larder.yaml:3", "registry.path"]),
        ("project: demo\nregistry:\n  type: sql\n", ["DIR/larder.yaml:3", "registry.type"]),
        ("host: x\n", ["DIR/larder.yaml:1", "project"]),
        ("project: [\n", ["DIR/larder.yaml:", ""]),
    ] {
        let error = load_with("larder.yaml", text, &[]).expect_err(text);
        assert!(wanted.iter().all(|w| error.contains(w)), "{text:?}: {error}");
    }
}

#[test]
fn a_feast_file_is_read_as_it_is() {
    let text = "project: my_project\nprovider: local\nregistry: data/registry.db\nonline_store:\n    type: sqlite\n    \
                path: data/online_store.db\nentity_key_serialization_version: 3\nauth:\n    type: no_auth\n";
    let config = load_with("feature_store.yaml", text, &[]).expect("good");
    assert!(
        matches!(&config.registry, Registry::File { path, cache_ttl_seconds: 600 } if path.ends_with("data/registry.db"))
    );
    assert!(matches!(&config.online, OnlineStore::Sqlite { path } if path.ends_with("data/online_store.db")));
    assert_eq!(config.notes, [""; 0]);

    let remote = "project: p\nregistry: {registry_type: remote, path: localhost:6570}\nonline_store: {type: remote}\n\
                  offline_store: {type: remote, host: localhost}\n";
    let config = load_with("feature_store.yaml", remote, &[]).expect("good");
    assert!(matches!(config.registry, Registry::Embedded));

    for (text, wanted) in [
        ("project: p\nregistry:\n  registry_type: sql\n  path: x\n", ["feature_store.yaml:3", "sql"]),
        ("project: p\nonline_store: dynamodb\n", ["feature_store.yaml:2", "sled, memory, redis or sqlite"]),
        (
            "project: p\nonline_store:\n  type: redis\n  redis_type: redis_sentinel\n",
            ["feature_store.yaml:3", "redis_sentinel is not offered"],
        ),
        (
            "project: p\nonline_store:\n  type: redis\n  key_ttl_seconds: soon\n",
            ["feature_store.yaml:3", "key_ttl_seconds: is 'soon'"],
        ),
        ("project: p\nentity_key_serialization_version: 2\n", ["feature_store.yaml:2", "version"]),
        ("provider: local\n", ["feature_store.yaml:1", "project"]),
    ] {
        let error = load_with("feature_store.yaml", text, &[]).expect_err(text);
        assert!(wanted.iter().all(|w| error.contains(w)), "{text:?}: {error}");
    }
}

#[test]
fn the_online_store_is_feasts_own() {
    let of = |store: &str| load_with("feature_store.yaml", &format!("project: p\n{store}"), &[]).expect("good");
    for store in ["", "online_store: sqlite\n", "online_store: {path: data/online.db}\n"] {
        let online = of(store).online;
        assert!(
            matches!(&online, OnlineStore::Sqlite { path } if path.ends_with("data/online.db")),
            "{store}: {online:?}"
        );
    }
    let absolute = of("online_store: {type: sqlite, path: /somewhere/else.db, vector_enabled: true}\n");
    assert!(matches!(&absolute.online, OnlineStore::Sqlite { path } if path == Path::new("/somewhere/else.db")));
    assert!(absolute.notes[0].contains("vector_enabled"), "{:?}", absolute.notes);

    let redis = |text: &str| match of(text) {
        Config { online: OnlineStore::Redis(settings), notes, .. } => (settings, notes),
        other => panic!("{:?}", other.online),
    };
    assert_eq!(redis("online_store: redis\n").0.address(), "localhost:6379");
    let (settings, notes) = redis(
        "online_store:\n  type: redis\n  redis_type: redis_cluster\n  key_ttl_seconds: 60\n  skip_dedup: true\n  \
         connection_string: a:1,b:2,ssl=true,password=s3cret,health_check_interval=1\n",
    );
    assert!(settings.cluster && settings.tls && settings.key_ttl.is_some_and(|t| t.as_secs() == 60));
    assert_eq!((settings.address().as_str(), settings.password.as_deref()), ("a:1,b:2", Some("s3cret")));
    assert!(["health_check_interval", "skip_dedup"].iter().all(|w| notes.iter().any(|n| n.contains(w))), "{notes:?}");
    assert!(!format!("{settings:?} {notes:?}").contains("s3cret"));

    let ours = "project: p\nonline_store: {type: redis, connection_string: 'r:7', key_ttl_seconds: 5}\n";
    let config = load_with("larder.yaml", ours, &[]).expect("good");
    assert!(matches!(&config.online, OnlineStore::Redis(settings) if settings.address() == "r:7"));
    let config = load_with("larder.yaml", "project: p\nonline_store: {type: sqlite}\n", &[]).expect("good");
    assert!(matches!(&config.online, OnlineStore::Sqlite { path } if path.ends_with("data/online.db")));
}

#[test]
fn variables_are_expanded_as_feast_does_it() {
    let variable = |name: &str| (name == "PORT").then(|| "7".to_owned());
    for (text, wanted) in [
        ("a: $PORT", "a: 7"),
        ("a: ${PORT}1", "a: 71"),
        ("a: ${NONE} $NONE $", "a: ${NONE} $NONE $"),
        ("a: ${PORT", "a: ${PORT"),
    ] {
        assert_eq!(expand(text, variable), wanted);
    }
}

#[test]
fn a_directory_without_configuration_says_what_to_do() {
    let error = load_with("other.yaml", "", &[]).expect_err("no file");
    assert!(error.contains("-c DIR"), "{error}");
}
