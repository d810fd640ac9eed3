//! One slot read over one window: the tiles' partial results made one, each kind in the way that takes the fewest
//! steps. Knows no functions and no bytes.

use std::borrow::Cow;

use crate::partial::{Partial, PartialKind};
use crate::scalar::Scalar;
use crate::sketch;
use crate::spec::{Read, Spec};
use crate::state::Pending;
use crate::tiles::{Tiles, add_to, typed};
use crate::timed::{Recent, Sessions};

/// Merges one slot over one window at `t_us`, with pending events whose time has come by then.
pub(crate) fn read<'a>(
    spec: &Spec,
    read: Read,
    tiles: &Tiles,
    t_us: i64,
    due: impl Iterator<Item = &'a Pending> + Clone,
) -> Partial {
    let set = &spec.sets()[read.set];
    let slot = set.slots[read.slot];
    let first = crate::hop::first_index(t_us, read.window_us, set.hop_us);
    let due = due.filter(|event| set.index(event.ts_us) >= first);
    let empty = &set.empty[read.slot];
    let finest = || tiles.finest(set, first, read.slot);
    let mut merged = match (slot.kind, empty) {
        (PartialKind::Distinct, _) => {
            let nth = crate::tiles::distinct_slots(set).take_while(|(place, _)| *place < read.slot).count();
            let inside = |value: &Scalar| {
                tiles.latest()[nth].get(&crate::tiles::Member(value.clone())).is_some_and(|index| *index >= first)
            };
            let mut fresh = Vec::new();
            for event in due {
                let value = slot.column.and_then(|i| typed(&event.columns[i], spec.types()[i]));
                if let Some(value) = value.map(|value| sketch::canonical(&value)).filter(|value| !inside(value)) {
                    sketch::insert(&mut fresh, &value);
                }
            }
            let count = |part: Cow<'_, Partial>| if let Partial::Distinct(n) = *part { n } else { 0 };
            return Partial::Distinct(finest().map(count).sum::<u64>() + fresh.len() as u64);
        }
        (PartialKind::Last | PartialKind::Latest, _) => {
            finest().rfind(|part| part.found()).map_or_else(|| empty.clone(), Cow::into_owned)
        }
        (PartialKind::First | PartialKind::Earliest, _) => {
            finest().find(|part| part.found()).map_or_else(|| empty.clone(), Cow::into_owned)
        }
        (PartialKind::Recent, Partial::Recent(like)) => {
            let mut values: Vec<(i64, Scalar)> = Vec::new();
            for part in finest().rev() {
                values.extend(part.kept().iter().rev().take(like.k - values.len()).cloned());
                if values.len() == like.k {
                    break;
                }
            }
            values.reverse();
            Partial::Recent(Box::new(Recent { k: like.k, values }))
        }
        (PartialKind::Firsts, Partial::Firsts(like)) => {
            let mut values: Vec<(i64, Scalar)> = Vec::new();
            for part in finest() {
                values.extend(part.kept().iter().take(like.k - values.len()).cloned());
                if values.len() == like.k {
                    break;
                }
            }
            Partial::Firsts(Box::new(Recent { k: like.k, values }))
        }
        (PartialKind::Registers, _) => {
            let mut ranks = sketch::Ranks::new();
            for part in finest() {
                if let Partial::Registers(registers) = &*part {
                    for register in registers {
                        ranks.raise(*register);
                    }
                }
            }
            Partial::Registers(ranks.sorted())
        }
        (PartialKind::Sessions, Partial::Sessions(like)) => {
            let mut open = Sessions { list: Vec::new(), gap_us: like.gap_us, zero: like.zero.clone() };
            let parts = tiles.parts(set, first, read.slot);
            let lists = parts.iter().rev().flat_map(|part| {
                if let Partial::Sessions(sessions) = &**part { sessions.list.iter().rev() } else { [].iter().rev() }
            });
            for session in lists {
                if !open.extend_back(session) {
                    break;
                }
            }
            Partial::Sessions(Box::new(open))
        }
        (kind, _) if kind.is_counted() => tiles
            .all_but(set, first, read.slot)
            .unwrap_or_else(|| kind.merged(empty, &tiles.parts(set, first, read.slot))),
        (kind, empty) => kind.merged(empty, &tiles.parts(set, first, read.slot)),
    };
    for event in due {
        add_to(&mut merged, slot.column, spec.types(), event.ts_us, &event.columns);
    }
    merged
}
