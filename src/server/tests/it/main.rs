//! Tests of the crate from outside.

#[path = "../../../../fuzz/checks.rs"]
mod checks;
mod fuzz;
