//! A long window on a hot key: a read in process beside a scan of the key's raw events. Knows no store and no broker.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use ingest::decode::avro::Writers;
use ingest::message::{Body, Message};
use ingest::pipeline::{self, Taker};
use window::{AggregationDef, ColumnType, Event, Scalar, Spec, State, Tiling};

use super::MINUTE;
use crate::cli;
use crate::error::{Error, Result};
use crate::figures::Figures;

const HOURS: i64 = 12;
/// Events a second.
const RATE: i64 = 10;
const READS: u32 = 20_000;
const BEGIN_US: i64 = 1_700_000_000_000_000;

/// Count, sum and maximum over twelve hours: from the tiles, and from the raw events as they stand in a topic.
pub(super) fn run(options: &cli::Streams, figures: &mut Figures) -> Result<()> {
    let aggregation = |function: &str| AggregationDef {
        feature: function.to_owned(),
        column: "amount".to_owned(),
        function: function.to_owned(),
        window_us: HOURS * 60 * MINUTE,
        slide_us: 0,
    };
    let defs = ["count", "sum", "max"].map(aggregation);
    let refused = |e: window::Error| Error::Answer(format!("the hot key's window: {e}"));
    let spec = Spec::new(&defs, Tiling::default(), |_| Some(ColumnType::Float)).map_err(refused)?;
    let events = HOURS * 3600 * RATE;
    let time = |number: i64| BEGIN_US + number * 1_000_000 / RATE;
    let amount = |number: i64| (number * 7919 % 50_000) as f64 / 100.0;
    let mut state = State::new(&spec);
    for number in 0..events {
        let event = Event { ts_us: time(number), columns: &[Scalar::Float(amount(number))] };
        state.apply(&spec, event, time(number)).map_err(refused)?;
    }
    let end = time(events - 1);
    let (mut reads, mut answer) = (Vec::new(), None);
    for _ in 0..options.runs {
        let start = Instant::now();
        for _ in 0..READS {
            answer = std::hint::black_box(&state).evaluate(&spec, std::hint::black_box(end));
        }
        reads.push(start.elapsed().as_secs_f64() * 1e6 / f64::from(READS));
    }
    let text = |number: i64| {
        format!(
            "{{\"user_id\": \"hot\", \"ts\": {}, \"amount\": {}, \"merchant\": \"m\"}}",
            time(number) / 1000,
            amount(number)
        )
    };
    let message = |number: i64| Message { offset: number, body: Body::of(text(number)), ..Message::default() };
    let raw: Vec<Message> = (0..events).map(message).collect();
    let feeds = super::feeds(1, 3, HOURS * 60)?;
    let taker = Taker { feed: &feeds[0], progress: &BTreeMap::new(), elsewhere: &BTreeSet::new() };
    let (mut scans, mut scanned) = (Vec::new(), (0, 0.0, f64::MIN));
    for _ in 0..options.runs {
        let start = Instant::now();
        scanned = (0, 0.0, f64::MIN);
        for messages in raw.chunks(options.batch) {
            for batch in pipeline::prepare(&[taker], &Writers::new(), messages, model::Timestamp(end), 0) {
                for event in &*batch.events {
                    if let Some(Scalar::Float(amount)) = event.columns.first() {
                        scanned = (scanned.0 + 1, scanned.1 + amount, scanned.2.max(*amount));
                    }
                }
            }
        }
        scans.push(start.elapsed().as_secs_f64() * 1e6);
    }
    let same = answer.is_some_and(|answer| match &answer.values[..] {
        [Scalar::Int(count), Scalar::Float(sum), Scalar::Float(max)] => {
            *count == scanned.0 && (sum - scanned.1).abs() <= 1e-9 * sum.abs() && max.total_cmp(&scanned.2).is_eq()
        }
        _ => false,
    });
    if !same {
        return Err(Error::Answer(format!(
            "a scan of the hot key's events gives {scanned:?}, its window another answer"
        )));
    }
    let (read, scan) = (figures.put("hot/read", &reads), figures.put("hot/scan", &scans));
    println!("12 hours of {events} events: a read {read} µs, a scan of the raw events {scan} µs");
    Ok(())
}
