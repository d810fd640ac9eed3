//! The tests of `service` from outside: on-demand feature views, with a store and functions in memory.

mod on_demand;
mod support;
