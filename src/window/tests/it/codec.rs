//! Stored bytes: what was written is read back, what is damaged is refused, nothing panics.

use proptest::prelude::*;
use window::{AggregationDef, Error, Event, Kind, Scalar, Spec, State, Tiling};

use crate::support::{MS, S, column_type, def, project, row, spec};

fn defs() -> Vec<AggregationDef> {
    vec![
        def("n", "count", "", 20 * S, 0),
        def("sum", "sum", "amount", 20 * S, 0),
        def("isum", "sum", "clicks", 5 * S, S),
        def("var", "var", "amount", 5 * S, S),
        def("min", "min", "merchant", 5 * S, S),
        def("last", "last", "wild", 0, 0),
    ]
}

/// The same and one of every kind of partial result.
fn every() -> Vec<AggregationDef> {
    let more = [
        ("skew", "amount"),
        ("seconds_since_last", ""),
        ("seconds_since_first", "merchant"),
        ("decayed_sum(2)", "amount"),
        ("decayed_count(2)", ""),
        ("session_sum(1)", "clicks"),
        ("session_sum(1)", "amount"),
        ("min_last_k(3)", "merchant"),
        ("first_k(2)", "wild"),
        ("top_k(2)", "merchant"),
        ("bottom_k(3)", "wild"),
        ("histogram", "clicks"),
        ("count_distinct", "wild"),
        ("approx_count_distinct", "seen"),
        ("median", "wild"),
    ];
    let more = more.iter().enumerate().map(|(i, (function, column))| def(&format!("x{i}"), function, column, 5 * S, S));
    defs().into_iter().chain(more).collect()
}

/// Version and checksum.
const FRAME: usize = 5;

/// Makes the checksum right.
fn seal(bytes: &mut [u8]) {
    let checksum = crc32fast::hash(&bytes[FRAME..]);
    bytes[1..FRAME].copy_from_slice(&checksum.to_le_bytes());
}

fn filled(spec: &Spec, events: &[(i64, Vec<Scalar>)]) -> State {
    let mut state = State::new(spec);
    for (steps, row) in events {
        let event = Event { ts_us: steps * 50 * MS, columns: &project(spec, row) };
        state.apply(spec, event, 0).unwrap();
    }
    state
}

/// Uses a state in every way: whatever bytes it came from, nothing may panic.
fn exercise(spec: &Spec, mut state: State) {
    for t_us in [i64::MIN, -S, 0, 3 * S, i64::MAX] {
        state.evaluate(spec, t_us);
    }
    let values = vec![Scalar::Null; spec.columns().len()];
    for ts_us in [i64::MIN, -S, 0, S, i64::MAX] {
        state.apply(spec, Event { ts_us, columns: &values }, 2 * S).unwrap();
    }
    state.encode(spec, &mut Vec::new());
    state.evict(spec, 3 * S);
    state.evict(spec, i64::MAX);
    state.evaluate(spec, i64::MAX);
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(tail in prop::collection::vec(any::<u8>(), 0..200), framed in any::<bool>()) {
        let spec = spec(&every(), Tiling::default());
        let mut bytes = Vec::new();
        if framed {
            State::new(&spec).encode(&spec, &mut bytes);
            bytes.truncate(FRAME + 8); // and the fingerprint: the rest is read in earnest
        }
        bytes.extend(tail);
        if framed {
            seal(&mut bytes);
        }
        if let Ok(state) = State::decode(&spec, &bytes) {
            exercise(&spec, state);
        }
    }

    /// Up to three flipped bits are always found by a CRC-32 of this length, and so is every cut.
    #[test]
    fn damaged_and_cut_bytes_are_refused(
        events in prop::collection::vec((-300i64..80, row()), 0..30),
        flips in prop::collection::vec((any::<prop::sample::Index>(), 0u8..8), 1..4),
        cut in any::<prop::sample::Index>(),
    ) {
        let spec = spec(&every(), Tiling::default());
        let mut bytes = Vec::new();
        filled(&spec, &events).encode(&spec, &mut bytes);
        let error = State::decode(&spec, &bytes[..cut.index(bytes.len())]).unwrap_err();
        prop_assert_eq!(error.kind(), Kind::Corrupt);
        let whole = bytes.clone();
        for (at, bit) in flips {
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
        }
        if bytes != whole {
            let error = State::decode(&spec, &bytes).unwrap_err();
            // a damaged version is another version
            prop_assert!(error.kind() == Kind::Corrupt || bytes[0] != whole[0], "{}", error);
        }
    }

    /// Whatever stands behind a good checksum, by somebody's malice: read or refused.
    #[test]
    fn damage_under_a_good_checksum_never_panics(
        events in prop::collection::vec((-300i64..80, row()), 0..30),
        flips in prop::collection::vec((any::<prop::sample::Index>(), 0u8..8), 1..4),
    ) {
        let spec = spec(&every(), Tiling::default());
        let mut bytes = Vec::new();
        filled(&spec, &events).encode(&spec, &mut bytes);
        for (at, bit) in flips {
            let at = at.index(bytes.len() - FRAME);
            bytes[FRAME + at] ^= 1 << bit;
        }
        seal(&mut bytes);
        if let Ok(state) = State::decode(&spec, &bytes) {
            exercise(&spec, state);
        }
    }

    #[test]
    fn what_is_written_is_read_back(events in prop::collection::vec((-300i64..80, row()), 0..30)) {
        let spec = spec(&every(), Tiling::default());
        let state = filled(&spec, &events);
        let mut bytes = Vec::new();
        state.encode(&spec, &mut bytes);
        let restored = State::decode(&spec, &bytes).unwrap();
        // by its text: NaN is not equal to itself
        prop_assert_eq!(format!("{restored:?}"), format!("{state:?}"));
        bytes.push(0);
        prop_assert_eq!(State::decode(&spec, &bytes).unwrap_err().kind(), Kind::Corrupt);
    }
}

#[test]
fn version_and_definition_are_told_apart_from_damage() {
    let (one, other) = (spec(&defs(), Tiling::default()), spec(&defs()[1..], Tiling::default()));
    let mut bytes = Vec::new();
    State::new(&one).encode(&one, &mut bytes);
    let error = State::decode(&other, &bytes).unwrap_err();
    assert_eq!(error, Error::Fingerprint { expected: other.fingerprint(), found: one.fingerprint() });
    assert_eq!(error.kind(), Kind::DefinitionChanged);
    bytes[0] = 99;
    assert_eq!(State::decode(&one, &bytes).unwrap_err(), Error::Version { expected: 2, found: 99 });

    let mut state = State::new(&one);
    let event = Event { ts_us: 0, columns: &[] };
    assert!(matches!(state.apply(&other, event, 0), Err(Error::Fingerprint { .. })));
}

#[test]
fn the_fingerprint_covers_what_the_state_keeps_and_nothing_else() {
    let base = defs();
    let print = |defs: &[AggregationDef]| spec(defs, Tiling::default()).fingerprint();
    let same = print(&base);
    // pinned: a changed value makes every stored state unreadable
    assert_eq!(same, 13_294_019_305_091_055_895, "pin");

    let mut reordered = base.clone();
    reordered.reverse();
    reordered[0].feature = "renamed".into();
    assert_eq!(print(&reordered), same);
    let mut richer = base.clone();
    richer.push(def("std", "stddev", "amount", 3 * S, S));
    assert_eq!(print(&richer), same, "its partial results are kept already");

    for change in [
        def("n", "count", "", 21 * S, 0),
        def("n", "count", "", 20 * S, 2 * S),
        def("n", "count", "merchant", 20 * S, 0),
        def("n", "max", "amount", 20 * S, 0),
        def("n", "count", "", 0, 0),
    ] {
        let mut changed = base.clone();
        changed[0] = change;
        assert_ne!(print(&changed), same, "{:?}", changed[0]);
    }
    let retyped = Spec::new(&base, Tiling::default(), |name| match name {
        "clicks" => Some(window::ColumnType::Float),
        _ => column_type(name),
    });
    assert_ne!(retyped.unwrap().fingerprint(), same);
}

#[test]
fn the_bytes_are_pinned() {
    let spec = spec(&[def("n", "count", "", S, 0), def("s", "sum", "clicks", S, 0)], Tiling::default());
    let mut state = State::new(&spec);
    for (ts_us, clicks) in [(-1, -3), (0, 70), (S, 5)] {
        state.apply(&spec, Event { ts_us, columns: &[Scalar::Int(clicks)] }, 0).unwrap();
    }
    let mut bytes = Vec::new();
    state.encode(&spec, &mut bytes);
    let mut body = spec.fingerprint().to_le_bytes().to_vec();
    body.extend(0i64.to_le_bytes()); // now
    body.extend([1, 0, 0, 0, 0, 0, 0, 0, 0]); // latest
    body.extend([2, 1, 1, 1, 5]); // two tiles; tile -1: 1 event, 1 value, -3
    body.extend([1, 1, 1, 0x8c, 1]); // tile 0: 1 event, 1 value, 70
    body.push(1); // one pending event
    body.extend(S.to_le_bytes());
    body.extend([3, 10]);
    let mut want = vec![2];
    want.extend(crc32fast::hash(&body).to_le_bytes());
    want.extend(&body);
    assert_eq!(bytes, want);

    // as Larder 0.2 wrote it
    let old = [vec![1], body].concat();
    assert_eq!(State::decode(&spec, &old).unwrap(), state);
}

#[test]
fn distinct_values_are_pinned_and_those_of_the_first_version_are_read() {
    let spec = spec(&[def("d", "count_distinct", "clicks", S, 0)], Tiling::default());
    let mut state = State::new(&spec);
    // 3 is in both tiles, 7 in the first, 5 in the second
    for (ts_us, clicks) in [(-1, 3), (-2, 7), (0, 5), (0, 3)] {
        state.apply(&spec, Event { ts_us, columns: &[Scalar::Int(clicks)] }, 0).unwrap();
    }
    let head = [&spec.fingerprint().to_le_bytes()[..], &[0; 8], &[1], &[0; 8]].concat();
    let mut bytes = Vec::new();
    state.encode(&spec, &mut bytes);
    // tiles -1 and one further on; 3 and 5 in the second, 7 in the first; nothing pending
    assert_eq!(bytes[FRAME..], [&head[..], &[2, 1, 1], &[3, 3, 6, 1, 3, 10, 1, 3, 14, 0], &[0]].concat());
    let old = [&[1], &head[..], &[2, 1, 2, 3, 6, 3, 14], &[1, 2, 3, 6, 3, 10], &[0]].concat();
    assert_eq!(State::decode(&spec, &old).unwrap(), state);
    assert_eq!(state.evaluate(&spec, 0).unwrap().values, [Scalar::Int(3)]);
    assert_eq!(state.evaluate(&spec, S).unwrap().values, [Scalar::Int(2)]);
}

#[test]
fn buckets_and_registers_are_pinned_and_those_of_the_first_version_are_read() {
    let defs = [def("m", "median", "clicks", S, 0), def("d", "approx_count_distinct", "clicks", S, 0)];
    let spec = spec(&defs, Tiling::default());
    let mut state = State::new(&spec);
    for clicks in [-1, 1] {
        state.apply(&spec, Event { ts_us: 0, columns: &[Scalar::Int(clicks)] }, 0).unwrap();
    }
    let head = [&spec.fingerprint().to_le_bytes()[..], &[0; 8], &[1], &[0; 8], &[1, 0]].concat();
    let mut bytes = Vec::new();
    state.encode(&spec, &mut bytes);
    let Some(body) = bytes[FRAME..].strip_prefix(&head[..]) else { panic!("{bytes:?}") };
    // two registers: the first by its number, the second by how many lie between them
    let (registers, buckets) = body.split_at(body.len() - 10);
    let number = |bytes: &[u8]| u16::from(bytes[0] & 0x7f) | u16::from(bytes[1]) << 7;
    let (first, gap) = (number(&registers[1..3]), number(&registers[4..6]));
    assert_eq!((registers.len(), registers[0]), (7, 2), "{registers:?}");
    // the buckets of -1 and 1, -100,000 and 100,000, once each; nothing pending
    assert_eq!(buckets, [2, 0xbf, 0x9a, 0x0c, 1, 0xc0, 0x9a, 0x0c, 1, 0]);

    let second = first + gap + 1;
    let by_number = [&registers[..4], &[second as u8 | 0x80, (second >> 7) as u8, registers[6]]].concat();
    let old = [&[1], &head[..], &by_number, &[2, 0xbf, 0x9a, 0x0c, 1, 0xc0, 0x9a, 0x0c, 1, 0]].concat();
    assert_eq!(State::decode(&spec, &old).unwrap(), state);
}
