//! Time windows: tiles, aggregation functions, the state of one entity and its one definition of
//! time, for online and offline alike. Knows no async runtime, Arrow, I/O, environment or clock:
//! time comes in as microseconds of event time.
//!
//! # Definition
//! For one entity and a query time `t`, a window `W` and a hop `h`, all in microseconds:
//!
//! ```text
//! value(t) = f over the events e with  start <= e.ts <= t,   start = floor((t - W) / h) * h
//! ```
//!
//! The leading edge is exact, the trailing edge moves in hops. `W = 0` is a lifetime window. An
//! entity is *known* at `t` if an event lies between the earliest start of all its windows at `t`
//! (see [`Spec::window_start`]) and `t`.
//!
//! ```
//! use window::{AggregationDef, ColumnType, Event, Scalar, Spec, State, Tiling};
//!
//! let minute = 60_000_000;
//! let aggregation = |feature: &str, function: &str| AggregationDef {
//!     feature: feature.into(),
//!     column: "delay".into(),
//!     function: function.into(),
//!     window_us: 60 * minute,
//!     slide_us: 0,
//! };
//! let stream = |column: &str| (column == "delay").then_some(ColumnType::Float);
//! let spec = Spec::new(
//!     &[aggregation("n", "count"), aggregation("mean", "mean")],
//!     Tiling::default(),
//!     stream,
//! )?;
//!
//! let mut state = State::new(&spec);
//! for (ts_us, delay) in [(0, 4.0), (minute, 8.0)] {
//!     state.apply(&spec, Event { ts_us, columns: &[Scalar::Float(delay)] }, minute)?;
//! }
//! let answer = state.evaluate(&spec, 2 * minute).expect("known");
//! assert_eq!(answer.values, [Scalar::Int(2), Scalar::Float(6.0)]);
//! assert_eq!(state.evaluate(&spec, 120 * minute), None);
//! # Ok::<(), window::Error>(())
//! ```
//!
//! # Rules that the table of functions leaves open
//! - Nulls are skipped; `count` without a column counts events. A known entity whose window holds
//!   no value has count 0 and null for everything else.
//! - A sum of integers is exact in 128 bits. A result beyond 64 bits is clamped to the nearest
//!   64-bit integer and [`Answer::saturated`] is set, whatever order the events came in, so that
//!   one absurd event cannot make an entity unreadable; it never wraps and never turns null.
//! - A sum of floats is compensated to about 106 bits, so that arrival order does not show. A sum
//!   beyond the range of a double is infinite, as in IEEE 754.
//! - NaN is a value, not a null: it makes `sum`, `mean`, `var` and `stddev` NaN, and for `min` and
//!   `max` it is greater than every number (as in PostgreSQL, DuckDB and Arrow's total order):
//!   `max` is NaN as soon as one value is, `min` only if all are. `-0.0` is less than `0.0` there.
//! - `var` and `stddev` are those of a sample: null for fewer than two values. They are exact to
//!   1e-12 where the deviation is above about 1e-9 of the mean, and 0 where it is below about 1e-15
//!   (1e-13 for a million values), which is noise; values beyond 1e154 make them infinite.
//! - `first` and `last` go by timestamp; among equal timestamps by arrival.
//! - `skew` and `kurtosis` (excess) are those of a sample, corrected for bias, as in pandas: null for
//!   fewer than three and four values, 0 where all are equal, NaN for values beyond 1e77.
//! - `decayed_sum` and `decayed_count` weigh an event by 2^-(age / half-life); a known entity whose
//!   window holds none has a decayed count of 0.0.
//! - A session's events are those of the window; `session_duration` is from its first to its last, in
//!   seconds. All sessions in the widest window are kept, since a late event may join any two.
//! - `*_last_k(n)` take the last n values that are not null.
//! - `first_k(n)` and `last_k(n)` are lists in the order of time, oldest first; `top_k(n)` is a list of the greatest
//!   values, greatest first, `bottom_k(n)` of the least, least first; a value that came twice is in them twice.
//! - `histogram` counts texts, integers and booleans by their text, and keeps every category that its window holds.
//! - `count_distinct` is exact and keeps every value once. All NaN are one value, and so
//!   are both zeros. `approx_count_distinct` has a standard error of 1.6 %.
//! - `approx_percentile(p)`, p from 0 to 1, is within 1 % of the value at rank floor(p (n - 1));
//!   `median` is that of 0.5. NaN is the greatest value.

mod cells;
mod codec;
mod compensated;
mod error;
mod function;
mod hop;
mod joint;
mod moments;
pub mod oracle;
mod partial;
mod ranked;
mod read;
mod ring;
mod scalar;
mod sets;
mod sketch;
mod spec;
mod state;
mod sweep;
mod tiles;
mod timed;

pub use error::{Error, Kind};
pub use function::Function;
pub use joint::{Joint, Part};
pub use scalar::{ColumnType, Output, Scalar};
pub use spec::{AggregationDef, Feature, Spec, Tiling};
pub use state::{Answer, Event, Outcome, State};
pub use sweep::sweep;
