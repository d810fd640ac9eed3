//! The machine's clock, which may be set back: by little, and time stands still until it is over; by more, and it is
//! followed, with a warning. Knows nobody who asks.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use model::Timestamp;
use model::ports::Clock;

/// A step back of so much or less is hidden, µs: what a time server corrects. Events that came before it would else lie
/// in the future, and be dead letters.
const HIDDEN_US: i64 = 10_000_000;

/// The time as UTC.
#[derive(Debug)]
pub(crate) struct SystemClock {
    latest: AtomicI64,
}

impl Default for SystemClock {
    fn default() -> Self {
        Self { latest: AtomicI64::new(i64::MIN) }
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.after(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
    }
}

impl SystemClock {
    /// What to say when the machine says `now`, µs.
    fn after(&self, now: i64) -> Timestamp {
        let latest = self.latest.load(Ordering::Relaxed);
        if now >= latest {
            // one that another thread was told meanwhile is later by next to nothing
            self.latest.store(now, Ordering::Relaxed);
            return Timestamp(now);
        }
        let back = latest.saturating_sub(now);
        if back <= HIDDEN_US {
            return Timestamp(latest);
        }
        // of the threads that see it, one tells
        if self.latest.compare_exchange(latest, now, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            metrics::counter!("larder_clock_set_back_total").increment(1);
            tracing::warn!(
                seconds = back / 1_000_000,
                now = %Timestamp(now),
                "the machine's clock was set back: events of the time that it had reached are taken for future ones, and \
                 go to the dead-letter topic; what windows had counted of that time counts again when it comes"
            );
        }
        Timestamp(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T0: i64 = 1_767_225_600_000_000;

    #[test]
    fn a_small_step_back_is_hidden_and_a_great_one_is_followed() {
        let clock = SystemClock::default();
        assert_eq!(clock.after(T0), Timestamp(T0));
        assert_eq!(clock.after(T0 - HIDDEN_US), Timestamp(T0), "time stands still");
        assert_eq!(clock.after(T0 - 1), Timestamp(T0));
        assert_eq!(clock.after(T0 + 1), Timestamp(T0 + 1), "and goes on");
        let hour = 3_600_000_000;
        assert_eq!(clock.after(T0 - hour), Timestamp(T0 - hour));
        assert_eq!(clock.after(T0 - hour + 5), Timestamp(T0 - hour + 5), "from there on");
        assert_eq!(clock.after(T0 - hour), Timestamp(T0 - hour + 5));
    }

    #[test]
    fn it_is_the_machines_time() {
        let clock = SystemClock::default();
        let before = clock.now();
        assert!(before > Timestamp(T0));
        assert!(clock.now() >= before);
    }
}
