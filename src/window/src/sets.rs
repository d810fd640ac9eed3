//! The tiles of all tile sets of one entity. Most definitions have one set, which needs no memory of its own: that would
//! be another wait for memory with each event. Knows no event.

use crate::tiles::Tiles;

/// One for each set of the definition, in its order.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Sets {
    first: Tiles,
    others: Box<[Tiles]>,
}

impl Sets {
    pub(crate) fn get(&self, set: usize) -> &Tiles {
        if set == 0 { &self.first } else { &self.others[set - 1] }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Tiles> {
        std::iter::once(&self.first).chain(&self.others)
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Tiles> {
        std::iter::once(&mut self.first).chain(&mut self.others)
    }
}

impl FromIterator<Tiles> for Sets {
    fn from_iter<I: IntoIterator<Item = Tiles>>(tiles: I) -> Self {
        let mut tiles = tiles.into_iter();
        Self { first: tiles.next().unwrap_or_default(), others: tiles.collect() }
    }
}
