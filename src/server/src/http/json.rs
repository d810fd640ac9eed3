//! JSON as Feast's feature server writes it, from the bytes of protobuf messages: no message and no
//! tree per value. Knows no request and no store.
//!
//! Source: `convert_response_to_dict` in `feast/feature_server_utils.py`, rendered by `json.dumps` with
//! the separators of Starlette's `JSONResponse`. The golden files in `tests/golden` are what these give.

mod answer;
mod text;
mod value;
mod whole;
pub(crate) mod wire;
mod zone;

pub use answer::response;
pub use value::{Damaged, value};

#[cfg(test)]
mod golden;
#[cfg(test)]
mod oracle;
#[cfg(test)]
mod tests;
