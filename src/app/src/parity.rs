//! The command `parity`: asks a running server to compare, and shows what is not the same.

use std::time::{Duration, Instant};

use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::admin::{self, Server};
use crate::cli;
use crate::config::Config;

/// Between two comparisons: hops pass, events come.
const PAUSE: Duration = Duration::from_millis(500);

/// Why the comparison is not good.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Server(#[from] admin::Error),
    #[error("{differences} of {values} values differ")]
    Different { differences: usize, values: usize },
}

#[derive(Deserialize)]
struct Report {
    at: String,
    entities: usize,
    values: usize,
    differences: Vec<Difference>,
}

#[derive(Deserialize)]
struct Difference {
    entity: Value,
    feature: String,
    online: Value,
    offline: Value,
    events: Vec<Event>,
}

#[derive(Deserialize)]
struct Event {
    ts: String,
    values: Value,
    later_than_online: bool,
}

/// Compares until the time is over.
pub(crate) async fn run(config: Config, options: cli::Parity) -> Result<(), Error> {
    let server = Server::new(&config, &options.server);
    let (start, lasts) = (Instant::now(), Duration::from_secs(options.seconds));
    let (mut values, mut differences) = (0, 0);
    for round in 0_u64.. {
        let body = json!({ "entities": options.entities, "seed": round });
        let report: Report = server.ask(Method::POST, &format!("/parity/{}", options.view), Some(body)).await?;
        println!(
            "{}: {} values of {} entities at {}, {} differ",
            options.view,
            report.values,
            report.entities,
            report.at,
            report.differences.len()
        );
        report.differences.iter().for_each(show);
        values += report.values;
        differences += report.differences.len();
        if start.elapsed() + PAUSE >= lasts {
            break;
        }
        tokio::time::sleep(PAUSE).await; // the time between comparisons is what is asked for
    }
    if differences > 0 { Err(Error::Different { differences, values }) } else { Ok(()) }
}

fn show(difference: &Difference) {
    let Difference { entity, feature, online, offline, events } = difference;
    println!("  {entity} {feature}: online {online}, offline {offline}; its latest events in the history:");
    for Event { ts, values, later_than_online } in events {
        println!("    {ts} {values}{}", if *later_than_online { " (online has seen none so late)" } else { "" });
    }
}
