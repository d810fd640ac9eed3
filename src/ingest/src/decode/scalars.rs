//! The values of an event as windows take them: most often there is one, which needs no memory of its own. Knows no
//! message.

use std::ops::Deref;
use std::sync::Arc;

use window::Scalar;

/// Some values. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Scalars(Kept);

#[derive(Clone, Debug)]
enum Kept {
    One([Scalar; 1]),
    Many(Arc<[Scalar]>),
}

impl Default for Scalars {
    fn default() -> Self {
        Self(Kept::Many(Arc::default()))
    }
}

impl Deref for Scalars {
    type Target = [Scalar];

    fn deref(&self) -> &[Scalar] {
        match &self.0 {
            Kept::One(one) => one,
            Kept::Many(many) => many,
        }
    }
}

impl PartialEq for Scalars {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl From<Scalar> for Scalars {
    fn from(one: Scalar) -> Self {
        Self(Kept::One([one]))
    }
}

impl FromIterator<Scalar> for Scalars {
    fn from_iter<I: IntoIterator<Item = Scalar>>(scalars: I) -> Self {
        Self(Kept::Many(scalars.into_iter().collect()))
    }
}
