//! Where tiles begin and end: the hop of a window, and floor division that holds for times before
//! the epoch. Knows no event and no function.

use crate::error::Error;
use crate::spec::Tiling;

const MS: i64 = 1_000;
const S: i64 = 1_000 * MS;
const MIN: i64 = 60 * S;
const HOUR: i64 = 60 * MIN;

/// The hops a window may get when the user named none, in microseconds, widest first.
const LADDER: [i64; 12] =
    [24 * HOUR, 6 * HOUR, HOUR, 30 * MIN, 15 * MIN, 5 * MIN, MIN, 30 * S, 10 * S, 5 * S, S, 100 * MS];

/// The hop of a view with `enable_tiling` and no `tiling_hop_size` (Feast's `StreamFeatureView`).
const TILING_DEFAULT: i64 = 5 * MIN;

/// The hop of a window: its slide if smaller than it, else the view's tiling hop, else the widest
/// of the ladder that is at most a 300th of the window. 0 for a lifetime window, which has one tile.
pub(crate) fn choose(window_us: i64, slide_us: i64, tiling: Tiling) -> Result<i64, Error> {
    let refuse = |what, value_us, problem| Err(Error::Duration { what, value_us, problem });
    if window_us < 0 {
        return refuse("time_window", window_us, "is negative: set it above 0, or leave it out");
    }
    if slide_us < 0 {
        return refuse("slide_interval", slide_us, "is negative: set it above 0, or leave it out");
    }
    if window_us == 0 {
        return Ok(0);
    }
    if slide_us > 0 && slide_us < window_us {
        return Ok(slide_us);
    }
    if tiling.enabled {
        let hop_us = if tiling.hop_us == 0 { TILING_DEFAULT } else { tiling.hop_us };
        if hop_us < 0 {
            return refuse("tiling_hop_size", hop_us, "is negative: set it above 0, or leave it out");
        }
        if hop_us >= window_us {
            // Feast's StreamFeatureView refuses it too.
            return refuse("tiling_hop_size", hop_us, "is not smaller than the time_window: set a smaller one");
        }
        return Ok(hop_us);
    }
    Ok(LADDER.into_iter().find(|&hop| hop <= window_us / 300).unwrap_or(100 * MS))
}

/// The tile that holds `ts_us`: tile `i` is `[i*h, (i+1)*h)`.
pub(crate) fn index(ts_us: i64, hop_us: i64) -> i64 {
    if hop_us == 0 { 0 } else { ts_us.div_euclid(hop_us) }
}

/// The first tile of a window at `t_us`.
pub(crate) fn first_index(t_us: i64, window_us: i64, hop_us: i64) -> i64 {
    if window_us == 0 { i64::MIN } else { index(t_us.saturating_sub(window_us), hop_us) }
}

/// The start of a window at `t_us`, in microseconds; `i64::MIN` for a lifetime window.
pub(crate) fn start(t_us: i64, window_us: i64, hop_us: i64) -> i64 {
    if window_us == 0 {
        return i64::MIN;
    }
    first_index(t_us, window_us, hop_us).saturating_mul(hop_us)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OFF: Tiling = Tiling { enabled: false, hop_us: 0 };

    #[test]
    fn the_ladder_gives_the_widest_hop_within_a_300th() {
        let cases = [
            (1, 100 * MS),
            (S, 100 * MS),
            (5 * MIN - 1, 100 * MS),
            (5 * MIN, S),
            (25 * MIN, 5 * S),
            (HOUR, 10 * S),
            (24 * HOUR, MIN),
            (30 * 24 * HOUR, HOUR),
            (300 * 24 * HOUR, 24 * HOUR),
            (i64::MAX, 24 * HOUR),
        ];
        for (window, hop) in cases {
            assert_eq!(choose(window, 0, OFF), Ok(hop), "window {window}");
            assert_eq!(choose(window, window, OFF), Ok(hop), "slide equal to window {window} means not given");
        }
    }

    #[test]
    fn a_slide_wins_over_tiling_and_tiling_over_the_ladder() {
        let tiling = Tiling { enabled: true, hop_us: 7 * S };
        assert_eq!(choose(HOUR, 3 * S, tiling), Ok(3 * S));
        assert_eq!(choose(HOUR, HOUR, tiling), Ok(7 * S));
        assert_eq!(choose(HOUR, 2 * HOUR, tiling), Ok(7 * S));
        assert_eq!(choose(HOUR, 0, Tiling { enabled: true, hop_us: 0 }), Ok(5 * MIN));
        assert_eq!(choose(HOUR, 0, Tiling { enabled: false, hop_us: 7 * S }), Ok(10 * S));
        assert_eq!(choose(0, 3 * S, tiling), Ok(0));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        assert!(choose(-1, 0, OFF).is_err());
        assert!(choose(HOUR, -1, OFF).is_err());
        assert!(choose(HOUR, 0, Tiling { enabled: true, hop_us: -1 }).is_err());
        assert!(choose(HOUR, 0, Tiling { enabled: true, hop_us: HOUR }).is_err());
    }

    #[test]
    fn starts_are_floored_also_before_the_epoch_and_at_the_ends_of_time() {
        assert_eq!(start(25, 10, 10), 10);
        assert_eq!(start(20, 10, 10), 10);
        assert_eq!(start(19, 10, 10), 0);
        assert_eq!(start(5, 10, 10), -10);
        assert_eq!(start(-1, 10, 10), -20);
        assert_eq!(start(i64::MIN, 10, 10), i64::MIN);
        assert_eq!(start(i64::MAX, 0, 0), i64::MIN);
        assert_eq!(index(-1, 10), -1);
        assert_eq!(index(-10, 10), -1);
        assert_eq!(index(-11, 10), -2);
    }
}
