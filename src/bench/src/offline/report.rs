//! The report: the bars and the tables, as Markdown. Knows no measurement, only names of figures.

use std::fmt::Write as _;

use super::{Bench, joins};
use crate::figures::{Figures, number};
use crate::page::{self, Bar, cell};

/// Memory that is flat: so much more for three times the rows and keys.
const FLAT: f64 = 1.1;

/// The bars of issue 4, "Fast".
fn bars(figures: &Figures) -> Vec<Bar> {
    let wall = |case: &str, system: &str| format!("{case}/{system}/wall");
    let against = |case: &str, peer: &str| figures.ratio(&wall(case, "larder"), &wall(case, peer));
    let (least, most) = (Bar::at_least, Bar::at_most);
    let small = "D, 10,000 rows";
    let dask = figures.ratio(&wall(small, "feast-dask"), &wall(small, "larder-frame"));
    vec![
        most("A, seconds, Larder : DuckDB", 1.0, against("A", "duckdb")),
        most("B, seconds, Larder : DuckDB", 1.0, against("B", "duckdb")),
        most("C, seconds, Larder : Polars", 1.0, against("C", "polars")),
        most("D, seconds, Larder : DuckDB", 1.0, against("D", "duckdb")),
        least("D with 10,000 entity rows, seconds, Feast's dask store : Larder", 30.0, dask),
        most("E, peak MB resident of the server", 900.0, figures.get("E/larder/rss")),
        most(
            "E with 10 times the entity rows, peak MB resident of the server",
            900.0,
            figures.get("E, 10 times the entity rows/larder-tenfold/rss"),
        ),
        most("E : D, seconds", 2.5, figures.ratio(&wall("E", "larder"), &wall("D", "larder"))),
        least(
            "F, rows of the source for a second, Larder (all) : Feast on SQLite (a tenth)",
            6.0,
            figures.ratio("F/larder/rows-per-second", "F-tenth/feast/rows-per-second"),
        ),
        most(
            "F, peak MB with three times the rows and keys : with all (a store that keeps little in memory)",
            FLAT,
            figures.ratio("F-triple/larder-small/rss", "F/larder-small/rss"),
        ),
    ]
}

/// The table of bars; also what is printed at the end.
pub(super) fn table(figures: &Figures) -> String {
    page::table(&bars(figures))
}

fn sets(out: &mut String, figures: &Figures) {
    out.push_str("\n## Training sets\n\n");
    out.push_str("| work | system | seconds | CPU-seconds | peak MB | first batch, s | CPU : DuckDB |\n");
    out.push_str("|---|---|---|---|---|---|---|\n");
    for case in &joins::CASES {
        for system in case.systems {
            let of = |what: &str| figures.get(&format!("{}/{system}/{what}", case.name));
            let Some(wall) = of("wall") else { continue };
            let cpu = |system: &str| format!("{}/{system}/cpu", case.name);
            let _ = writeln!(
                out,
                "| {} | {system} | {wall} | {} | {} | {} | {} |",
                case.name,
                cell(of("cpu")),
                of("rss").map_or_else(|| "–".to_owned(), |f| number(f.median)),
                cell(of("first")),
                cell(figures.ratio(&cpu(system), &cpu("duckdb"))),
            );
        }
    }
}

fn fills(out: &mut String, figures: &Figures) {
    out.push_str("\n## Materialization\n\n");
    out.push_str(
        "| rows | system | seconds | CPU-seconds | peak MB | rows per second | rows per CPU-second |\n|---|---|---|---|---|---|---|\n",
    );
    for (work, title) in [("F-triple", "three times all"), ("F", "all"), ("F-tenth", "a tenth")] {
        for system in ["larder", "larder-small", "feast"] {
            let of = |what: &str| figures.get(&format!("{work}/{system}/{what}"));
            if let Some(wall) = of("wall") {
                let cells = ["cpu", "rss", "rows-per-second", "rows-per-cpu-second"].map(|what| cell(of(what)));
                let _ = writeln!(out, "| {title} | {system} | {wall} | {} |", cells.join(" | "));
            }
        }
    }
}

/// What the server does while it is read from.
const READS: [(&str, &str); 3] = [
    ("quiet", "nothing else"),
    ("busy", "F is materialized"),
    ("export", "training sets of 1,000,000 of F's rows are exported over Flight, one after the other"),
];

fn reads(out: &mut String, figures: &Figures) {
    out.push_str("\n## Reads of one key over HTTP, milliseconds\n\n| meanwhile | p50 | p99 |\n|---|---|---|\n");
    for (name, title) in READS {
        let of = |quantile: &str| cell(figures.get(&format!("F/larder/{name}_{quantile}")));
        let _ = writeln!(out, "| {title} | {} | {} |", of("p50"), of("p99"));
    }
}

const METHOD: &str = "\
## How it was measured

- A: 5,000,000 rows of 50 keys joined to as many entity rows, of whose keys half are there; B: 1,000,000 rows over 100,000 keys, \
100,000 entity rows; both without a ttl, written by `asof_data.py`. C: 336,776 flights and the hourly weather of their origins, 10 \
features. D: 1,000,000 entity rows and three views of 10,000,000 rows over 100,000 keys, 30 features, ttl 1 day. E: D with \
`offline.memory_limit_bytes: 512000000`. F: 10,000,000 rows of 1,000,000 keys, 10 features; a tenth of it is a tenth of both. \
`--scale` takes that part of the rows.
- Seconds are from the request to a whole Arrow table in the client, from the same Parquet files, which the page cache holds. \
CPU is that of client and server, until the server rests; of the peer's process; MB is the peak of the server, or of the \
peer's process (which is Python and holds at least 150 MB).
- `larder` is the Feast SDK's `get_historical_features(…).to_arrow()` with the entity rows as SQL over their data source; \
`larder-frame` with a pandas frame, which travels there and back; `larder-bare` a pyarrow Flight client with the same SQL; \
`larder-tenfold` uploads D's entity rows ten times over in batches; \
`larder-export` is `larder export` in a process of its own, its start and the writing of a Parquet file included, its CPU and peak \
from `getrusage`.
- DuckDB: one `ASOF LEFT JOIN` for each view; Polars: one `join_asof` for each view, behind a sort by time (but for A, whose rows \
are in order). Each run is a process of its own, without its imports, and Larder \
has answered one request of one row before; the systems take turns, each run beginning with another.
- Feast's dask and duckdb stores run once, within the limits that the command names for time and address space, \
on fewer entity rows where the table says so.
- What comes out is compared by a hash of all cells that knows neither the order of rows nor of columns.
- `larder-small` is Larder whose store keeps little in memory (`tier_bytes` 32 MB, `cache_bytes` 64 MB, `log_bytes` 16 MB), with \
`offline.memory_limit_bytes` 128 MB: what materializing takes beside the store, of a tenth of the rows and keys, of all, and of three times \
as many.
- Before a materialization Larder's store is empty. Meanwhile one client in Python reads key after key, \
which takes CPU too; afterwards some hundred keys are read and compared. The same client reads before, and once more \
while the same process fetches training sets: server and clients share the machine's cores.
";

/// The whole page.
pub(super) fn page(bench: &Bench, command: &str) -> String {
    let mut out =
        "# Training sets and materialization, measured\n\nWritten by `make bench-offline`; do not edit.\n\n".to_owned();
    let setup = &bench.world.setup;
    let peers = page::versions(&setup.venv, &setup.work, &["feast", "duckdb", "polars", "pyarrow"]);
    let lines = [format!("peers: {peers}"), format!("runs: {} (Feast: one), scale {}", bench.runs, bench.world.scale)];
    page::head(&mut out, &setup.larder, command, &bench.load, &lines);
    let _ = writeln!(out, "\n## Bars\n\n{}", table(&bench.figures));
    page::failures(&mut out, &bench.figures);
    if !bench.notes.is_empty() {
        out.push_str("What peers did not do, or did otherwise:\n\n");
        for note in &bench.notes {
            let _ = writeln!(out, "- {}", note.replace('\n', " "));
        }
        out.push('\n');
    }
    out.push_str(METHOD);
    sets(&mut out, &bench.figures);
    fills(&mut out, &bench.figures);
    reads(&mut out, &bench.figures);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_compare_run_by_run_and_say_what_was_not_measured() {
        let mut figures = Figures::default();
        figures.put("A/larder/wall", &[2.0, 3.0]);
        figures.put("A/duckdb/wall", &[1.0, 2.0]);
        figures.put("E/larder/rss", &[899.0]);
        figures.put("F/larder/rows-per-second", &[70_000.0, 80_000.0]);
        figures.put("F-tenth/feast/rows-per-second", &[7_000.0]);
        let table = table(&figures);
        let line = |what: &str| table.lines().find(|l| l.contains(what)).expect("is there").to_owned();
        assert!(line("A, seconds").contains("| 1.75 (1.50 – 2.00) | at most 1.00 | **missed** |"), "{table}");
        assert!(line("E, peak").contains("| passed |"));
        assert!(line("F, rows").contains("| 10.7 (10.7 – 10.7) | at least 6.00 | passed |"));
        assert!(line("D, seconds").contains("not measured"));
    }
}
