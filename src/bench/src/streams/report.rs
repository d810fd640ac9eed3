//! The page of `streams`: the bars and the tables, as Markdown. Knows no measurement, only names of figures.

use std::fmt::Write as _;

use crate::cli;
use crate::figures::{Figures, number};
use crate::page::{self, Bar, cell};

/// How many entities were asked for.
#[derive(Clone, Copy)]
pub(super) struct Entities {
    /// With an event each.
    many: u64,
    /// While memory is measured.
    resident: u64,
}

impl Entities {
    pub(super) fn of(options: &cli::Streams) -> Self {
        Self { many: options.entities, resident: options.resident }
    }
}

fn count(entities: u64) -> String {
    number(entities as f64)
}

/// The bars of issue 5, "Fast" and "Exactly once, always fresh", as far as they are measured here. (Those of entities are
/// for 10 million and for a million.)
fn bars(figures: &Figures, entities: Entities) -> Vec<Bar> {
    let (least, most) = (Bar::at_least, Bar::at_most);
    let ratio = |over: &str, under: &str| figures.ratio(over, under);
    vec![
        most("CPU-seconds for 1 M events from Kafka, one view of 3 windows", 2.0, figures.get("kafka/1x3/cpu")),
        least("CPU-seconds, PyFlink : Larder from Kafka", 14.0, ratio("flink/cpu", "kafka/1x3/cpu")),
        least("events a second, Larder from Kafka : PyFlink", 10.0, ratio("kafka/1x3/rate", "flink/rate")),
        most("CPU, ten views of five windows : one", 4.0, ratio("file/10x5/cpu", "file/1x5/cpu")),
        most("read of 12 hours on a hot key (432,000 events), in process, µs", 20.0, figures.get("hot/read")),
        least("a scan of the hot key's raw events : a read", 5_000.0, ratio("hot/scan", "hot/read")),
        most(
            &format!("CPU of an event, {} entities : 10,000", count(entities.many)),
            4.0,
            ratio("entities/many/cpu", "entities/few/cpu"),
        ),
        most(
            &format!("memory with {} entities of 3 windows : their keys and states", count(entities.resident)),
            3.0,
            ratio("resident/rss", "resident/state"),
        ),
        most("event produced → value readable at 50,000 events a second, p99, ms", 50.0, figures.get("fresh/p99")),
    ]
}

/// The table of bars; also what is printed at the end.
pub(super) fn table(figures: &Figures, entities: Entities) -> String {
    page::table(&bars(figures, entities))
}

fn method(entities: Entities) -> String {
    let Entities { many, resident } = entities;
    let (many, resident) = (count(many), count(resident));
    format!(
        "\
## How it was measured

- The events: 1,000,000 of `events.py` (JSON, 171 bytes, 10,000 keys, 30 minutes of event time, out of order by up to 5 s).
- `file`: from the file through the pipeline of a consumer, decoded, folded into windows and durable in the embedded store, with no \
broker. The counts over 5 minutes hopping by 1 minute, asked at each minute's end, are compared with the peers' answer, 345,151 \
rows summing to 5,000,000.
- `kafka`: the release server behind a real Apache Kafka (one node, two partitions) that holds all events when the view is registered. \
They are moved in time so that the last one is now, and the windows, an hour and more hopping by a minute, hold them all; afterwards each \
user's count is read. Seconds are from the registration to the last event applied, CPU that of the server until its last checkpoint is written.
- `entities/few`, `entities/many`: one view of three windows, in process: a million events of ten thousand entities, and {many} \
events of as many, none of which comes twice. CPU is that of the process until all is durable and the store is closed; at most three runs. Memory: {resident} \
entities with twenty events each over 55 minutes, in windows of an hour hopping by a minute; what the process had more resident afterwards, the embedded store's \
caches included, beside the bytes of keys and stored states.
- The hot key: 12 hours of ten events a second; count, sum and maximum over them, by a read of the state and by decoding and \
adding up the raw events.
- `flink`, `spark`: the count over 5 minutes hopping by 1 minute, from the same file; `flink_hop.py` as it is shared, and PySpark Structured \
Streaming on two cores. Seconds and CPU are those of all their processes from start to end, that of the JVM included.
- Freshness: while 50,000 events a second are produced, one probe after the other is produced and asked for over HTTP until the answer \
has it. Broker, producer, server and client share the machine's cores.
"
    )
}

/// The whole page; `head` is what stands at its top.
pub(super) fn page(head: &str, figures: &Figures, entities: Entities) -> String {
    let mut out =
        "# Windows over streams, measured\n\nWritten by `make bench-streams`; do not edit.\n\n".to_owned() + head;
    let _ = writeln!(out, "\n## Bars\n\n{}", table(figures, entities));
    page::failures(&mut out, figures);
    out.push_str(&method(entities));
    out.push_str("\n## A million events\n\n| system | seconds | CPU-seconds | peak MB | events a second |\n|---|---|---|---|---|\n");
    let names = figures.names().filter_map(|name| name.strip_suffix("/cpu"));
    for name in names {
        let of = |what: &str| cell(figures.get(&format!("{name}/{what}")));
        let _ = writeln!(out, "| {name} | {} | {} | {} | {} |", of("wall"), of("cpu"), of("rss"), of("rate"));
    }
    let of = |what: &str| cell(figures.get(what));
    let _ = writeln!(
        out,
        "\n## Memory with {} entities of three windows\n\n| keys and states, MB | resident, MB | bytes of an entity's key and state | bytes resident for it |\n|---|---|---|---|\n| {} | {} | {} | {} |",
        count(entities.resident),
        of("resident/state"),
        of("resident/rss"),
        of("resident/state_entity"),
        of("resident/entity")
    );
    let _ = writeln!(
        out,
        "\n## A 12-hour window on a hot key, µs\n\n| a read | a scan of its raw events |\n|---|---|\n| {} | {} |",
        of("hot/read"),
        of("hot/scan")
    );
    out.push_str(
        "\n## From an event to its value, milliseconds\n\n| events a second | p50 | p99 | worst |\n|---|---|---|---|\n",
    );
    let of = |what: &str| cell(figures.get(&format!("fresh/{what}")));
    let _ = writeln!(out, "| {} | {} | {} | {} |", of("rate"), of("p50"), of("p99"), of("worst"));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_compare_with_the_peers_of_the_same_run() {
        let mut figures = Figures::default();
        figures.put("kafka/1x3/cpu", &[1.5]);
        figures.put("flink/cpu", &[30.0]);
        figures.put("fresh/p99", &[51.0]);
        let page = page("- a head\n", &figures, Entities { many: 2_000_000, resident: 5_000 });
        let line = |what: &str| page.lines().find(|l| l.contains(what)).expect("is there").to_owned();
        assert!(
            line("PyFlink : Larder from Kafka").contains("| 20.0 (20.0 – 20.0) | at least 14.0 | passed |"),
            "{page}"
        );
        assert!(line("p99, ms").contains("**missed**"));
        assert!(line("ten views of five").contains("not measured"));
        assert!(line("| kafka/1x3 |").contains("1.50"));
        // the labels say what was asked for
        assert!(line("CPU of an event").contains("2,000,000 entities"), "{page}");
        assert!(line("in process: a million events").contains("2,000,000"), "{page}");
        assert_eq!(page.matches("5,000 entities").count(), 3, "{page}");
    }
}
