//! Windows over history: one pass over an entity's sorted events, answering at many times, with
//! the same state that serves online. Knows no files and no columnar data.

use crate::error::Error;
use crate::spec::Spec;
use crate::state::{Answer, Event, State};

/// Answers at each of `queries` (microseconds, in any order), in their order.
///
/// `events` are those of one entity, sorted by timestamp, with arrival order among equals. An
/// event at exactly a query's time counts. `None` where the entity is unknown at that time.
///
/// # Errors
/// [`Error::Unsorted`] if the events are not sorted; what [`State::apply`] refuses.
pub fn sweep<'a>(
    spec: &Spec,
    events: impl IntoIterator<Item = Event<'a>>,
    queries: &[i64],
) -> Result<Vec<Option<Answer>>, Error> {
    let mut order: Vec<usize> = (0..queries.len()).collect();
    order.sort_by_key(|&i| queries[i]);
    let mut answers = vec![None; queries.len()];
    let mut state = State::new(spec);
    let mut events = events.into_iter().peekable();
    let mut previous_us = i64::MIN;
    for i in order {
        let t_us = queries[i];
        while let Some(event) = events.next_if(|event| event.ts_us <= t_us) {
            if event.ts_us < previous_us {
                return Err(Error::Unsorted { previous_us, ts_us: event.ts_us });
            }
            previous_us = event.ts_us;
            state.apply(spec, event, event.ts_us)?;
        }
        answers[i] = state.evaluate(spec, t_us);
    }
    Ok(answers)
}
