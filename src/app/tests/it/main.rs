//! Tests of the whole house from inside the workspace.

mod tidy;
