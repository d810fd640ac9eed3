//! Windows over history: the build rows of a key are its events, and an entity row's answer is what
//! the window state says at its time. The same code as online: [`window::State`].

use arrow::array::{ArrayRef, Int64Array};
use model::registry::{Field, View};
use model::value::NULL;
use model::{Error, Result, Value, ValueType};
use window::{Event, Scalar, Spec, State};

use crate::asof::Fold;
use crate::convert::{in_column, to_values};

/// One windowed view's answers, entity row by entity row.
pub(crate) struct Windows<'a> {
    view: &'a View,
    spec: &'a Spec,
    /// Columns that the definition reads as integers: a float column carries them where pandas had nulls.
    whole: Vec<bool>,
    /// The requested features' places among the view's.
    wanted: Vec<usize>,
    chunk: Vec<Vec<Scalar>>,
    /// The chunk's event times in µs, where it is merged at other ones.
    times: Option<Int64Array>,
    state: State,
    answers: Vec<Vec<Value>>,
    failed: Option<Error>,
    matched: u64,
}

impl<'a> Windows<'a> {
    /// For `rows` entity rows and these features of the view.
    pub(crate) fn new(view: &'a View, spec: &'a Spec, features: &[Field], rows: usize) -> Self {
        let place = |f: &Field| view.features.iter().position(|have| have.name == f.name);
        let wanted: Vec<usize> = features.iter().filter_map(place).collect();
        Self {
            view,
            spec,
            whole: service::windows::whole_columns(spec),
            answers: vec![vec![NULL; rows]; wanted.len()],
            wanted,
            chunk: Vec::new(),
            times: None,
            state: State::new(spec),
            failed: None,
            matched: 0,
        }
    }

    /// The event columns of the next chunk, in the order of [`Spec::columns`], and its event times in µs where the
    /// events come in by other ones.
    pub(crate) fn chunk(&mut self, columns: &[ArrayRef], times: Option<Int64Array>) -> Result<()> {
        self.times = times;
        self.chunk = columns
            .iter()
            .enumerate()
            .map(|(i, column)| {
                let name = &self.spec.columns()[i];
                let values = to_values(column, ValueType::Invalid).map_err(|e| in_column(name, &e))?;
                let scalars = values.iter().map(service::windows::to_scalar);
                Ok(if self.whole[i] { scalars.map(service::windows::whole).collect() } else { scalars.collect() })
            })
            .collect::<Result<_>>()?;
        Ok(())
    }

    /// Per feature one value per entity row, and how many entity rows were known.
    pub(crate) fn finish(self) -> Result<(Vec<Vec<Value>>, u64)> {
        match self.failed {
            Some(error) => Err(error),
            None => Ok((self.answers, self.matched)),
        }
    }
}

impl Fold for Windows<'_> {
    fn new_key(&mut self) {
        self.state = State::new(self.spec);
    }

    fn add(&mut self, row: usize, time: i64) -> Result<()> {
        let columns: Vec<Scalar> = self.chunk.iter().map(|c| c[row].clone()).collect();
        let ts_us = self.times.as_ref().map_or(time, |times| times.value(row));
        let event = Event { ts_us, columns: &columns };
        self.state
            .apply(self.spec, event, time)
            .map_err(|e| Error::invalid(format!("the batch source of feature view '{}': {e}", self.view.name)))?;
        Ok(())
    }

    fn settle(&mut self, probe: u32, time: i64) {
        let Some(answer) = self.state.evaluate(self.spec, time) else { return };
        match service::windows::values(answer.values, self.spec, self.view) {
            Ok(values) => {
                self.matched += 1;
                for (column, place) in self.answers.iter_mut().zip(&self.wanted) {
                    column[probe as usize].clone_from(&values[*place]);
                }
            }
            Err(error) => {
                self.failed.get_or_insert(error);
            }
        }
    }
}
