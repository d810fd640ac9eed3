//! Tests of the online store from outside, through its public API.

mod kill;
